"""Image files that a table names: read only from inside the folder of the data."""

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO

import pyarrow as pa

from moe_core.data.image_files import MAX_FILE_BYTES
from moe_core.data.sources.files import unreachable
from moe_core.data.sources.originals import within
from moe_core.data.sources.raw import Unusable
from moe_core.errors import BadSource

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
ROOTED = re.compile(r"[/\\]|[A-Za-z]:[/\\]")
UP = re.compile(r"(?:^|[/\\])\.\.(?:[/\\]|$)")
ABSENT = {errno.ENOENT, errno.ENOTDIR}
# no file can have such a name, or links are a ring
NO_NAME = {errno.ELOOP, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL}
HELD = 1 << 20  # bytes of names of absent files that stay in memory


class ImageFolder:
    """Folders in which names are looked up, in their order. `root`: what paths are relative to; the first folder."""

    def __init__(self, *folders: Path, root: str = "") -> None:
        self.root = root or str(folders[0])
        self.found = ""  # what was read last, relative to `root`
        # text rather than paths: a Path a row costs as much as reading a small file
        self.folders = [
            (str(folder), os.path.realpath(folder).rstrip(os.sep) + os.sep) for folder in dict.fromkeys(folders)
        ]
        self._real = lru_cache(maxsize=10_000)(partial(os.path.realpath, strict=True))
        self._absent: IO[str] | None = None

    def watching(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The batches, which `read` fills. Raises BadSource behind the last where an absent file exists now.

        A mount that goes away leaves an empty folder, in which every file looks deleted.
        """
        with SpooledTemporaryFile(HELD, "w+", encoding="utf-8") as self._absent:
            yield from batches
            self._absent.seek(0)
            for line in self._absent:
                for path in json.loads(line):
                    if _exists(path):
                        raise BadSource(
                            f"{path} was absent when its row was read, and exists now: check the disk or the share, "
                            "then run the same command again"
                        )

    def read(self, *names: str, absolute: bool = False) -> bytes:
        """Bytes of the first of `names` that exists. `absolute` allows names that begin at the root.

        Raises Unusable: outside_folder for '..', an absolute name, or a link that leads outside; no_image_file for a
        absent file. Raises BadSource for a file that exists and cannot be read, and where the folder is gone.
        """
        why = f"no file {names[0]}" if names and names[0].strip() else "no file is named"
        absent = []
        for name in names:
            if not name.strip():
                continue
            if URL.match(name):
                raise Unusable("no_image_file", f"{name} is a URL: images are read from files, so fetch them first")
            if UP.search(name) or (ROOTED.match(name) and not absolute):
                raise Unusable("outside_folder", f"{name} may lead outside of the folder")
            for folder, real in self.folders:
                try:
                    data = self._inside(name, real)
                    self.found = within(os.path.normpath(os.path.join(folder, name)), self.root)
                    return data
                except OSError as error:
                    if error.errno in ABSENT:
                        absent.append(os.path.join(folder, name))
                        continue
                    if error.errno not in NO_NAME:
                        raise unreachable(os.path.join(folder, name), error) from None
                    why = f"{name}: {error.strerror}"
                except ValueError as error:  # NUL in the name
                    why = f"{name}: {error}"
        if absent:
            self._note(absent)
        raise Unusable("no_image_file", why)

    def _note(self, absent: list[str]) -> None:
        """Remembers paths without a file. Raises BadSource where a whole folder is gone."""
        for folder, _ in self.folders:
            try:
                os.stat(folder)
            except OSError as error:
                raise unreachable(folder, error) from None
        if self._absent is not None:
            self._absent.write(json.dumps(absent) + "\n")

    def _inside(self, name: str, real: str) -> bytes:
        above, base = os.path.split(os.path.join(real, name))  # where a link to the folder led at first
        path = os.path.join(self._real(above), base)
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):  # a link, or a folder by a name such as "a/."
            path = os.path.realpath(path, strict=True)
            status = os.lstat(path)
        if not path.startswith(real):
            raise Unusable("outside_folder", f"{name} leads outside of the folder")
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a file")
        if status.st_size > MAX_FILE_BYTES:
            raise Unusable("too_large", f"{name} has {status.st_size} bytes, more than {MAX_FILE_BYTES}")
        with open(path, "rb") as file:
            data = file.read()
            after = os.fstat(file.fileno())
        if len(data) < status.st_size or after.st_ctime_ns != status.st_ctime_ns:
            raise OSError(errno.EBUSY, "it was changed while it was read")
        return data


def _exists(path: str) -> bool:
    try:
        os.stat(path)
        return True
    except OSError as error:
        if error.errno in ABSENT | NO_NAME:
            return False
        raise unreachable(path, error) from None
    except ValueError:  # NUL in the name
        return False
