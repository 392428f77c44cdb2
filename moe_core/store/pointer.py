"""Small JSON files with a checksum, replaced in one move: what is current, what is published, what was requested.

A pointer names artifacts; it holds none. Readers see the old value or the new one, and a damaged file is told from a
missing one: what a pointer named must not be forgotten silently.
"""

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from moe_core.errors import CorruptArtifact
from moe_core.store.files import fsync, write_text
from moe_core.store.hashing import Json, with_checksum, without_checksum


def read(path: Path, fields: Collection[str] | None = None) -> dict[str, Json] | None:
    """The value of a pointer, without its checksum; None where there is no such file.

    Raises CorruptArtifact where the file is not what `write` left, or has other `fields` than those, and OSError where
    it cannot be read.
    """
    try:
        value = without_checksum(path.read_bytes())
        if fields is not None and set(value) != set(fields):
            raise ValueError(f"it has {', '.join(value) or 'nothing'}; wanted {', '.join(fields)}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise CorruptArtifact(f"{path} is damaged ({error})", path) from None
    return value


def write(path: Path, value: Mapping[str, Json]) -> bool:
    """Replaces a pointer that holds another value, is damaged or missing; on the disk before this returns.

    Returns whether it was written. An equal value writes nothing, so that its file keeps its time.
    """
    text = json.dumps(with_checksum(value), indent=1)
    with suppress(OSError, UnicodeDecodeError):
        if path.read_text("utf-8") == text:
            return False
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    fsync(path.parent)
    return True


def remove(path: Path) -> None:
    """Removes a pointer, such as a request that was answered; a missing one is no error."""
    path.unlink(missing_ok=True)
