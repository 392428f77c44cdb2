"""Files written whole or not at all, flushed to the disk, and removed in one step."""

import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moe_core.failpoints import failpoint
from moe_core.processes import is_dead, this_process


def write_text(path: Path, text: str) -> None:
    """Replaces a file's text in one move; a reader sees the old text or the new one."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces a file in one move; a reader sees the old bytes or the new ones, and a failure leaves the old."""
    part = part_of(path)
    try:
        with errors_with_path(path), open(part, "wb") as file:
            failpoint("file.opened", path)
            half = len(data) // 2
            file.write(memoryview(data)[:half])
            file.flush()
            failpoint("file.half", path)
            file.write(memoryview(data)[half:])
            file.flush()
            failpoint("file.written", path)
            os.fsync(file.fileno())
        failpoint("file.synced", path)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    failpoint("file.renamed", path)


@contextmanager
def errors_with_path(path: Path) -> Iterator[None]:
    """Names this file in an OSError that names none, as that of a failing write or fsync."""
    try:
        yield
    except OSError as error:
        if error.errno is None and str(path) not in str(error):  # of Lance or Arrow: only a text
            raise OSError(f"{path}: {error}") from error
        if error.errno is not None and not error.filename:
            error.filename = str(path)
        raise


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; files that are removed meanwhile count nothing."""
    files = [path] if path.is_file() else [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
    size = 0
    for file in files:
        with suppress(FileNotFoundError):
            size += file.lstat().st_size
    return size


def stamp_of(path: Path) -> str:
    """Changes whenever a file is replaced or written; empty where there is none."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_mtime_ns} {status.st_ino} {status.st_size}"


def fsync(path: Path) -> None:
    """Flushes the bytes of a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with errors_with_path(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def folders_in(path: Path) -> list[Path]:
    """Visible folders in a folder, by name; none where that is missing."""
    if not path.is_dir():
        return []
    return [child for child in sorted(path.iterdir()) if not child.name.startswith(".") and child.is_dir()]


def hidden_name(parent: Path) -> Path:
    """A name that no reader sees, and that names the process."""
    return parent / f".part-{socket.gethostname()}-{this_process()}-{uuid.uuid4().hex[:8]}"


def part_of(path: Path) -> Path:
    """Name of a file that this process writes, until it is complete."""
    return path.with_name(f".{path.name}.{this_process()}.part")


def dead_parts(parent: Path) -> list[Path]:
    """Temporary folders of processes of this machine that are dead."""
    return [path for path in parent.glob(".part-*-*-*") if is_dead(process_of(path))]


def dead_files(folder: Path) -> list[Path]:
    """Unfinished files in a folder, of processes of this machine that are dead."""
    return [path for path in folder.glob(".*.part") if is_dead(process_of(path))]


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder that goes with the block; those that processes of this machine left when they died go first."""
    parent.mkdir(parents=True, exist_ok=True)
    for left in dead_parts(parent):
        shutil.rmtree(left, ignore_errors=True)
    folder = hidden_name(parent)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def process_of(part: Path) -> str:
    """Name of the process that writes a file or folder named by `part_of` or `hidden_name`."""
    return part.name.split(".")[-2] if part.suffix == ".part" else part.name.rsplit("-", 2)[1]


def remove_atomically(path: Path) -> None:
    """Removes a file or a folder; a folder is renamed first, so that a reader sees all of it or nothing.

    It is no error where another process removed it meanwhile.
    """
    if path.is_dir():
        hidden = hidden_name(path.parent)
        try:
            path.rename(hidden)
        except FileNotFoundError:
            return
        shutil.rmtree(hidden)
    else:
        path.unlink(missing_ok=True)
