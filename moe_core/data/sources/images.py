"""Image files that a table names: read only from inside the folder of the data."""

import os
import re
import stat
from functools import lru_cache
from pathlib import Path

from moe_core.data.sources.raw import MAX_FILE_BYTES, Unusable

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
ROOTED = re.compile(r"[/\\]|[A-Za-z]:[/\\]")
UP = re.compile(r"(?:^|[/\\])\.\.(?:[/\\]|$)")


@lru_cache(maxsize=10_000)
def _real(folder: str) -> str:
    return os.path.realpath(folder, strict=True)


class ImageFolder:
    """The folders in which names are looked up, in their order."""

    def __init__(self, *folders: Path) -> None:
        # text rather than paths: a Path a row costs as much as reading a small file
        self.folders = [
            (str(folder), os.path.realpath(folder).rstrip(os.sep) + os.sep) for folder in dict.fromkeys(folders)
        ]

    def read(self, *names: str, absolute: bool = False) -> bytes:
        """Bytes of the first of `names` that is there. `absolute` names are looked at where they are allowed.

        Raises Unusable: outside_folder for '..', an absolute name, or a link that leads outside; no_image_file.
        """
        why = f"no file {names[0]}" if names and names[0].strip() else "no file is named"
        for name in names:
            if not name.strip():
                continue
            if URL.match(name):
                raise Unusable("no_image_file", f"{name} is a URL: images are read from files, so fetch them first")
            if UP.search(name) or (ROOTED.match(name) and not absolute):
                raise Unusable("outside_folder", f"{name} may lead outside of the folder")
            for folder, real in self.folders:
                try:
                    return self._inside(name, folder, real)
                except FileNotFoundError:
                    continue
                except (OSError, ValueError) as error:  # no permission, NUL in the name, links in a ring
                    why = f"{name}: {getattr(error, 'strerror', None) or error}"
        raise Unusable("no_image_file", why)

    def _inside(self, name: str, folder: str, real: str) -> bytes:
        above, base = os.path.split(os.path.join(folder, name))
        path = os.path.join(_real(above), base)
        about = os.lstat(path)
        if not stat.S_ISREG(about.st_mode):  # a link, or a folder by such a name as "a/."
            path = os.path.realpath(path, strict=True)
            about = os.lstat(path)
        if not path.startswith(real):
            raise Unusable("outside_folder", f"{name} leads outside of the folder")
        if not stat.S_ISREG(about.st_mode):
            raise OSError(0, "not a file")
        if about.st_size > MAX_FILE_BYTES:
            raise Unusable("too_large", f"{name} has {about.st_size} bytes, more than {MAX_FILE_BYTES}")
        with open(path, "rb") as file:
            return file.read()
