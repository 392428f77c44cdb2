"""Tar archives: read from front to back, never unpacked to the disk, nothing in them trusted."""

import io
import lzma
import os
import re
import sqlite3
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from moe_core.data.image_files import IMAGE_SUFFIXES, MAX_FILE_BYTES
from moe_core.data.sources.declared import Absurd
from moe_core.data.sources.files import File, damaged, opened
from moe_core.data.sources.raw import Unusable
from moe_core.data.sources.text_values import MAX_LINE
from moe_core.errors import BadSource
from moe_core.store.locks import exclusive
from moe_core.text import utf8

INDEX_VERSION = 1  # raised when other members are pictures
BROKEN = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, RecursionError, OverflowError, ValueError)
HEADERS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
MAX_HEADER = 1 << 20  # bytes of a long name, or of a member's records (xattrs among them)
MAX_RECORDS = 100  # that hold for all the members that follow
NUMBER = re.compile(rb"\d{201}")
UNFOLDED, RATIO = 1 << 30, 200  # bytes that any compressed tar may have, and times its size: pictures shrink little


@dataclass(frozen=True)
class Member:
    """A file in a tar. `data` is empty where `problem` says why it is not read."""

    name: str
    data: bytes
    problem: Unusable | None
    offset: int
    size: int


def members(path: str, contents: bool = True) -> Iterator[Member]:
    """The members in their order, but for folders. Raises BadSource for an archive that is damaged or cut short."""
    seen = 0
    with opened(path) as raw:
        if not raw.size():
            raise BadSource(f"{path} is empty (0 bytes), wanted a tar: remove it, or copy it again")
        try:
            limit = max(UNFOLDED, RATIO * raw.size())
            with tarfile.open(fileobj=raw, mode="r:*", tarinfo=_Header) as tar:
                while (info := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # else it keeps every member
                    if info.size < 0 or tar.offset < info.offset_data:
                        raise Absurd(f"member {seen} claims {info.size} bytes")
                    if tar.offset > limit:
                        raise Absurd(f"it unfolds to more than {RATIO} times its size")
                    if info.isdir():
                        continue
                    problem = _problem(info)
                    data = b""
                    if contents and problem is None:
                        file = tar.extractfile(info)
                        assert file is not None  # it is a regular file
                        data = file.read()
                        if len(data) != info.size:
                            raise tarfile.ReadError("unexpected end of data")
                    seen += 1
                    yield Member(info.name, data, problem, info.offset_data, info.size)
                _ends_well(tar, limit)
        except Absurd as error:
            raise BadSource(f"{path} is refused after {seen} members: {error}") from None
        except BROKEN as error:
            raise damaged(path, error, f"damaged or cut short after {seen} members") from None


def _problem(info: tarfile.TarInfo) -> Unusable | None:
    parts = PurePosixPath(info.name.replace("\\", "/")).parts
    if ".." in parts or info.name.startswith(("/", "\\")):
        return Unusable("outside_folder", f"member {info.name} may lead outside of the tar")
    if not info.isreg() or info.issparse():
        what = "a link" if info.issym() or info.islnk() else "a sparse file" if info.issparse() else "a device"
        return Unusable("bad_row", f"member {info.name} is {what}, not a file")
    limit = MAX_FILE_BYTES if info.name.lower().endswith(IMAGE_SUFFIXES) else MAX_LINE
    if info.size > limit:
        return Unusable("too_large", f"member {info.name} has {info.size} bytes, more than {limit}")
    return None


class _Header(tarfile.TarInfo):
    """A header that is bounded: tarfile reads long names, records and maps of sparse files as long as they say."""

    @classmethod
    def fromtarfile(cls, tar: Any) -> "_Header":
        if isinstance(tar.fileobj, _Records):
            tar.fileobj = tar.fileobj.behind
        return super().fromtarfile(tar)

    def _proc_member(self, tar: Any) -> Any:
        if self.type in HEADERS and not 0 <= self.size <= MAX_HEADER:
            raise Absurd(f"a header of {self.size} bytes, more than {MAX_HEADER}")
        return super()._proc_member(tar)  # type: ignore[misc]

    def _proc_pax(self, tar: Any) -> Any:
        """Checks the records first: tarfile searches badly formed ones again and again, and copies global ones."""
        block = tar.fileobj.read(self._block(self.size))  # type: ignore[attr-defined]
        records = _records(block)
        if self.type == tarfile.XGLTYPE and records + len(tar.pax_headers) > MAX_RECORDS:
            raise Absurd(f"more than {MAX_RECORDS} records that hold for all members")
        tar.fileobj = _Records(block, tar.fileobj)
        return super()._proc_pax(tar)  # type: ignore[misc]

    def _proc_sparse(self, tar: Any) -> "_Header":
        """Where the next member begins; the map of the holes is not kept."""
        extended = self._sparse_structs[1]  # type: ignore[attr-defined]
        while extended:
            block = tar.fileobj.read(tarfile.BLOCKSIZE)
            if len(block) < tarfile.BLOCKSIZE:
                raise tarfile.ReadError("unexpected end of data")
            extended = block[504]
        self.sparse: Any = ()
        self.offset_data = tar.fileobj.tell()
        tar.offset = self.offset_data + self._block(self.size)  # type: ignore[attr-defined]
        return self

    def _no_map(self, member: "_Header", *_: Any) -> None:
        member.sparse = ()

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _no_map


def _records(block: bytes) -> int:
    """The number of records of a header. Raises Absurd for a record that is not "length key=value"."""
    at = number = 0
    while at < len(block) and block[at]:
        length, space, _ = block[at : at + 20].partition(b" ")
        if not (space and length.isdigit() and len(length) + 3 < int(length) <= len(block) - at):
            raise Absurd("a header with a record that is none")
        if block.find(b"=", at, at + int(length)) < 0 or block[at + int(length) - 1 : at + int(length)] != b"\n":
            raise Absurd("a header with a record that is none")
        at += int(length)
        number += 1
    if NUMBER.search(block):
        raise Absurd("a header with a number of more than 200 digits")
    return number


class _Records(io.BytesIO):
    """A header's records, which are read next, and the file behind them."""

    def __init__(self, block: bytes, behind: Any) -> None:
        super().__init__(block)
        self.behind = behind


def _ends_well(tar: tarfile.TarFile, limit: int) -> None:
    """tarfile takes a header that is cut or damaged for the end: the end is zeros, to the last byte of the file.

    Reading to the last byte also checks the checksums of a compressed file.
    """
    file: Any = tar.fileobj
    file.seek(tar.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or block.strip(b"\0"):
        raise tarfile.ReadError("no end-of-archive mark where the members end")
    while block := file.read(1 << 20):
        if file.tell() > limit:
            raise Absurd(f"it unfolds to more than {RATIO} times its size")
        if block.strip(b"\0"):
            raise tarfile.ReadError("there is more after the end-of-archive mark (two tars joined by cat?)")


class TarImages:
    """Images in tars by the stem of their names. One pass indexes where each lies; the index is kept on the disk."""

    def __init__(self, tars: list[File], cache: Path | None) -> None:
        self.tars = tars
        self.cache = cache
        self.found = ""  # tar#member that was read last

    @contextmanager
    def open(self) -> Iterator["TarImages"]:
        self.handles: dict[str, Any] = {}
        # without a folder the index is a temporary file of SQLite: it may not fit into memory
        if self.cache:
            self.cache.mkdir(parents=True, exist_ok=True)
        # lance takes batches from several threads, one at a time
        path = str(self.cache / "tars.sqlite") if self.cache else ""
        self.index = sqlite3.connect(path, timeout=3600, check_same_thread=False)
        try:
            with exclusive(self.cache / "tars.lock") if self.cache else nullcontext():
                self._build()
            yield self
        finally:
            self.index.close()
            for file in self.handles.values():
                file.close()

    def watching(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The batches, which `read` fills. Raises BadSource behind the last where a tar was changed meanwhile."""
        with self.open():
            yield from batches
        for tar in self.tars:
            status = os.stat(tar.path)
            if (status.st_size, status.st_ctime_ns) != (tar.size, tar.touched):
                raise BadSource(f"{tar.path} was changed while it was read: run the same command again")

    def _build(self) -> None:
        if self.index.execute("PRAGMA user_version").fetchone()[0] != INDEX_VERSION:
            self.index.executescript(
                f"DROP TABLE IF EXISTS tars; DROP TABLE IF EXISTS members; PRAGMA user_version = {INDEX_VERSION}"
            )
        self.index.execute("CREATE TABLE IF NOT EXISTS tars (path TEXT PRIMARY KEY, size INT, changed INT)")
        self.index.execute("CREATE TABLE IF NOT EXISTS members (stem TEXT, path TEXT, name TEXT, offset INT, size INT)")
        self.index.execute("CREATE INDEX IF NOT EXISTS stems ON members (stem)")
        indexed = {row[0]: row[1:] for row in self.index.execute("SELECT path, size, changed FROM tars")}
        for tar in self.tars:
            path = _sql(tar.path)
            if indexed.get(path) == (tar.size, tar.touched):
                continue
            with open(tar.path, "rb") as file:
                compressed = file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))
            if compressed:
                raise BadSource(f"{tar.path} is compressed: its images cannot be picked out, so unpack it to a .tar")
            with self.index:  # one tar is one transaction
                self.index.execute("DELETE FROM members WHERE path = ?", (path,))
                self.index.executemany("INSERT INTO members VALUES (?, ?, ?, ?, ?)", places(tar.path))
                self.index.execute("INSERT OR REPLACE INTO tars VALUES (?, ?, ?)", (path, tar.size, tar.touched))

    def read(self, *stems: str) -> bytes:
        """The image with the first of these stems that any tar has, from the first such tar. Raises Unusable."""
        wanted = {_sql(tar.path) for tar in self.tars}
        for stem in stems:
            rows = self.index.execute("SELECT path, name, offset, size FROM members WHERE stem = ?", (_sql(stem),))
            places = sorted(row for row in rows if row[0] in wanted)
            if places:
                path, name, offset, size = places[0]
                if size > MAX_FILE_BYTES:
                    raise Unusable("too_large", f"member {name} has {size} bytes, more than {MAX_FILE_BYTES}")
                if path not in self.handles:
                    self.handles[path] = open(path, "rb")  # noqa: SIM115 (closed with the index)
                file = self.handles[path]
                file.seek(offset)
                data = bytes(file.read(size))
                if len(data) != size:
                    raise BadSource(f"{path} was cut short while it was read: run the same command again")
                self.found = utf8(f"{os.path.basename(os.fsdecode(path))}#{os.fsdecode(name)}")
                return data
        raise Unusable("no_image_file", f"no image {stems[0] if stems else ''} in the tars")


def _sql(name: str) -> str | bytes:
    """A name as SQLite takes it: one that is not UTF-8 as bytes, which `open` takes too."""
    try:
        name.encode()
        return name
    except UnicodeEncodeError:
        return os.fsencode(name)


def places(path: str) -> Iterator[tuple[str | bytes, str | bytes, str | bytes, int, int]]:
    """Rows of the index for the pictures in a tar: stem, tar, member, offset and size."""
    for member in members(path, contents=False):
        name = PurePosixPath(member.name).name
        if name.lower().endswith(IMAGE_SUFFIXES) and (member.problem is None or member.problem.reason == "too_large"):
            yield _sql(name.split(".")[0]), _sql(path), _sql(member.name), member.offset, member.size
