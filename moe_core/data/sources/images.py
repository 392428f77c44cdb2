"""Image files that a table names: read only from inside the folder of the data."""

import os
import re
import stat
from pathlib import Path

from moe_core.data.sources.raw import MAX_FILE_BYTES, Unusable


class ImageFolder:
    """The folders in which names are looked up, in their order."""

    def __init__(self, *folders: Path) -> None:
        self.folders = [(folder, folder.resolve()) for folder in dict.fromkeys(folders)]

    def read(self, *names: str, absolute: bool = False) -> bytes:
        """Bytes of the first of `names` that is there. `absolute` names are looked at where they are allowed.

        Raises Unusable: outside_folder for '..', an absolute name, or a link that leads outside; no_image_file.
        """
        why = f"no file {names[0]}" if names and names[0].strip() else "no file is named"
        for name in names:
            if not name.strip():
                continue
            if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
                raise Unusable("no_image_file", f"{name} is a URL: images are read from files, so fetch them first")
            rooted = name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", name)
            if ".." in re.split(r"[/\\]", name) or (rooted and not absolute):
                raise Unusable("outside_folder", f"{name} may lead outside of the folder")
            for folder, real in self.folders:
                try:
                    path = (folder / name).resolve(strict=True)
                    if not path.is_relative_to(real):
                        raise Unusable("outside_folder", f"{name} leads outside of the folder")
                    about = os.stat(path)
                    if not stat.S_ISREG(about.st_mode):
                        why = f"{name} is not a file"
                    elif about.st_size > MAX_FILE_BYTES:
                        raise Unusable("too_large", f"{name} has {about.st_size} bytes, more than {MAX_FILE_BYTES}")
                    else:
                        return path.read_bytes()
                except FileNotFoundError:
                    continue
                except (OSError, ValueError, RuntimeError) as error:  # no permission, NUL in the name, links in a ring
                    why = f"{name}: {getattr(error, 'strerror', None) or error}"
        raise Unusable("no_image_file", why)
