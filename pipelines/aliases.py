"""Short, plain links to folders whose own path some library cannot take.

Unix sockets have paths of at most 107 bytes, gRPC reads theirs as a URI, and Dagster's SQLite address ends at a "?".
"""

import hashlib
import os
import re
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from moe_core.errors import BadSetting
from moe_core.processes import machine

BASES = ("/tmp", "/var/tmp", "/dev/shm")
SOCKETS = re.compile(r"[A-Za-z0-9_./-]{1,60}")  # multiprocessing adds 32 bytes, torch 34


def alias(folder: Path) -> Path:
    """A link of this user's to an absolute folder, always the same. Raises BadSetting where none can be created."""
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    for base in BASES:
        ours = Path(base, f"hardmoe-{os.getuid()}")
        with suppress(OSError):
            ours.mkdir(mode=0o700, exist_ok=True)
            about = ours.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o022:
                continue  # another user's, who could redirect our links
            with suppress(FileExistsError):
                (ours / name).symlink_to(folder)
            if os.readlink(ours / name) == str(folder):
                return ours / name
    raise BadSetting(
        f"{folder}: no link to it can be created in any of {', '.join(BASES)}; choose a plain, shorter path"
    )


def shorten_temporary_folder() -> None:
    """Gives sockets of this process and of those started later a path that fits; files stay where they are.

    Raises BadSetting.
    """
    folder = tempfile.gettempdir()
    if SOCKETS.fullmatch(folder):
        return
    try:
        tempfile.tempdir = str(alias(Path(folder)))
    except BadSetting as error:
        raise BadSetting(f"TMPDIR is no folder for sockets, whose paths are short: {error}") from None
    os.environ["TMPDIR"] = tempfile.tempdir


def socket_prefix() -> str:
    """Prefix of the folders in which code servers of this machine have their sockets."""
    return f"hardmoe-{machine()}-"
