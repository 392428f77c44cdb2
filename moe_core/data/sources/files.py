"""Files of a source: found, named and opened. Local paths, or URIs through pyarrow and fsspec."""

import errno
import glob
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from moe_core.errors import BadSource
from moe_core.text import one_line

WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class File:
    """A file of a source."""

    path: str
    name: str  # within the source, with '/'
    size: int
    changed: int  # nanoseconds since 1970
    touched: int = 0  # the same of its inode, which cannot be set back; 0 elsewhere


# The file exists, or did: a disk, a share or this process cannot reach it now. Other errors are about the file itself.
LOST = {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO}
LOST |= {errno.ENOTCONN, errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EREMOTEIO}
# no file by that name, or a link that leads nowhere
NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


def unreachable(path: object, error: OSError) -> BadSource:
    """The error for a file or folder that cannot be read now, though it may be good."""
    why = error.strerror or one_line(error)
    return BadSource(
        f"{path} cannot be read: {why}; check the disk, the share or the permissions, then run the same command again"
    )


def damaged(path: object, error: Exception, how: str, remedy: str = "copy it again, or remove it") -> BadSource:
    """The error for a file whose content cannot be read; where its disk or share failed, that it cannot be reached."""
    if isinstance(error, OSError) and error.errno in LOST:
        return unreachable(path, error)
    return BadSource(f"{path} is {how}: {one_line(error)}; {remedy}")


def is_remote(uri: str) -> bool:
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", uri)) and not uri.startswith("file://")


def local(uri: str) -> Path:
    """The path of a local file or folder, also as file://. Raises BadSource for another scheme."""
    if is_remote(uri):
        raise BadSource(f"{uri} is not on this machine: this format reads local files only, so copy it here first")
    return Path(unquote(urlsplit(uri).path) if uri.startswith("file://") else uri)


def files_at(uri: str, suffixes: Sequence[str], what: str) -> list[File]:
    """Files by their names: a file, a folder (all the way down) or a glob. Raises BadSource where there is none.

    In a folder only the suffixes count, and what starts with '.' or '_' does not.
    """
    files = _remote(uri, suffixes) if is_remote(uri) else _local(local(uri), suffixes)
    if not files:
        raise BadSource(f"no {what.split(',')[0].split(' ', 1)[1]} at {uri}: wanted {what}")
    return sorted(files, key=lambda file: file.name)


def _local(path: Path, suffixes: Sequence[str]) -> list[File]:
    if path.is_dir():
        return [file for file in walk(path) if file.name.lower().endswith(tuple(suffixes))]
    if path.exists():
        return [file_of(path, path.parent)]
    base = fixed_part(path)
    pattern = str(path.relative_to(base))
    if not WILDCARD.search(pattern):
        return []
    paths = glob.glob(os.path.join(glob.escape(str(base)), pattern), recursive=True)
    return [file_of(Path(p), base) for p in paths if _is_file(p)]


def _is_file(path: str) -> bool:
    """Raises BadSource where a disk or a share does not answer."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        if error.errno in NO_FILE:
            return False
        raise unreachable(path, error) from None


def fixed_part(path: Path) -> Path:
    """The folders of a glob above its first wildcard; a name that exists is no wildcard, whatever characters it has."""
    fixed = Path(path.anchor)
    for part in path.parts[bool(path.anchor) :]:
        if WILDCARD.search(part) and not (fixed / part).exists():
            break
        fixed /= part
    return fixed


def file_of(path: Path, base: Path) -> File:
    status = path.stat()
    name = Path(os.path.relpath(path, base)).as_posix()
    return File(str(path), name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def walk(folder: Path, hidden: bool = False, links: bool = False) -> Iterator[File]:
    """All files below a folder. Links to folders are not followed, links to files are; broken ones are no files.

    With `links`, also links to folders, whose names say where they lead.

    Raises BadSource where a disk or a share does not answer: what it hides must not look absent.
    """
    stack = [(str(folder), "")]
    while stack:
        path, prefix = stack.pop()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.startswith((".", "_")) and not hidden:
                        continue
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            stack.append((entry.path, f"{prefix}{entry.name}/"))
                        elif entry.is_file():
                            info = entry.stat()
                            name = prefix + entry.name
                            yield File(entry.path, name, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
                        elif links and entry.is_dir():
                            yield File(entry.path, f"{prefix}{entry.name} -> {os.readlink(entry.path)}", 0, -1)
                    except OSError as error:
                        if error.errno not in NO_FILE:
                            raise
                        # gone since the listing, or a link that leads nowhere
        except OSError as error:
            raise unreachable(path, error) from None


def listing(folder: Path, suffixes: Sequence[str], hidden: bool = False) -> str:
    """Hash of names, sizes and times of the files with these suffixes, and of links to folders; no file is read."""
    wanted = tuple(suffixes)
    files = (f for f in walk(folder, hidden, links=True) if f.name.lower().endswith(wanted) or f.changed < 0)
    lines = [f"{f.name}\0{f.size}\0{f.changed}" for f in files]
    together = hashlib.sha256()
    for line in sorted(lines):
        together.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return together.hexdigest()


def file_system(uri: str) -> tuple[Any, str]:
    """pyarrow's file system for a URI, and the path in it. Raises BadSource where there is none."""
    from pyarrow import fs

    try:
        system_and_path: tuple[Any, str] = fs.FileSystem.from_uri(uri)
        return system_and_path
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass  # a scheme that pyarrow does not know
    except OSError as error:
        raise BadSource(f"{uri} cannot be reached: {one_line(error, 300)}") from None
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        why = one_line(error, 300)
        raise BadSource(f"{uri}: pyarrow does not know this scheme, and fsspec cannot help: {why}") from None
    except (ValueError, OSError) as error:
        raise BadSource(f"{uri}: no file system for it: {one_line(error, 300)}") from None
    return fs.PyFileSystem(fs.FSSpecHandler(system)), path


def _remote(uri: str, suffixes: Sequence[str]) -> list[File]:
    from pyarrow import fs

    scheme = uri.split("://")[0]
    wild = WILDCARD.search(uri)
    base = uri[: wild.start()].rpartition("/")[0] if wild else uri
    system, path = file_system(base)
    pattern = _pattern(uri[len(base) + 1 :]) if wild else None
    try:
        info_of_base = system.get_file_info(path)
        if info_of_base.type == fs.FileType.File:
            return [_info(info_of_base, uri, PurePosixPath(path).name)]
        below = system.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    except OSError as error:
        raise BadSource(f"{uri} cannot be reached: {one_line(error, 300)}") from None
    files = []
    for info in below:
        name = info.path.removeprefix(path).lstrip("/")
        hidden = any(part.startswith((".", "_")) for part in name.split("/"))
        wanted = pattern.fullmatch(name) if pattern else not hidden and name.lower().endswith(tuple(suffixes))
        if info.type == fs.FileType.File and wanted:
            files.append(_info(info, f"{scheme}://{info.path.lstrip('/')}", name))
    return files


def _info(info: Any, uri: str, name: str) -> File:
    return File(uri, name, info.size or 0, info.mtime_ns or 0)


def _pattern(wild: str) -> re.Pattern[str]:
    """A glob as an expression, in which '*' stays within a folder and '**' does not."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]*\])", wild)
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(special.get(p) or (p if p.startswith("[") and len(p) > 1 else re.escape(p)) for p in parts)
    )


@contextmanager
def opened(path: str, mapped: bool = False) -> Iterator[Any]:
    """A local file or URI as a file of pyarrow, mapped into memory if asked. Raises BadSource when it cannot be."""
    try:
        if is_remote(path):
            system, within = file_system(path)
            file = system.open_input_file(within)
        else:
            encoded = os.fsencode(local(path))  # pyarrow would refuse text that is not UTF-8
            # an empty file cannot be mapped
            file = pa.memory_map(encoded) if mapped and os.path.getsize(encoded) else pa.OSFile(encoded)
    except OSError as error:
        raise BadSource(f"{path} cannot be opened: {one_line(error, 300)}") from None
    with file:
        yield file


def key_of(name: str, suffixes: Sequence[str]) -> str:
    """Partition key of a file: a pure function of its name in the source, so that a new file never moves an old one.

    The stem, for plain names with the first suffix; else a plain form of the name with a hash of it.
    """
    usual = next((s for s in suffixes[:1] if name.endswith(s)), None)
    if usual and re.fullmatch(r"[A-Za-z0-9_-]{1,60}", stem := name.removesuffix(usual)):
        return stem
    bare = next((name[: -len(s)] for s in sorted(suffixes, key=len, reverse=True) if name.lower().endswith(s)), name)
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", bare)[-50:].strip("-") or "shard"
    return f"{plain}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"
