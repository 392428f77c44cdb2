"""Small JSON documents with a checksum: what is current, what is published, what was requested.

A pointer names artifacts; it holds none. Readers see the old value or the new one, and a damaged document is told from
a missing one: what a pointer named must not be forgotten silently.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import PurePath

from moe_core.errors import CorruptArtifact
from moe_core.store.documents import Documents
from moe_core.store.hashing import Json, with_checksum, without_checksum


def read(documents: Documents, name: PurePath, fields: Collection[str] | None = None) -> dict[str, Json] | None:
    """The value of a pointer, without its checksum; None where there is none.

    Raises CorruptArtifact where it is not what `write` left, or has other `fields` than those, and what `Documents`
    raise where it cannot be read.
    """
    return parsed(documents, name, documents.read(name), fields)


def parsed(
    documents: Documents, name: PurePath, data: bytes | None, fields: Collection[str] | None = None
) -> dict[str, Json] | None:
    """The value in the bytes of a pointer, as `read` has it."""
    if data is None:
        return None
    try:
        value = without_checksum(data)
        if fields is not None and set(value) != set(fields):
            raise ValueError(f"it has {', '.join(value) or 'nothing'}; wanted {', '.join(fields)}")
    except ValueError as error:
        where = documents.where(name)
        raise CorruptArtifact(f"{where} is damaged ({error})", where) from None
    return value


def text(value: Mapping[str, Json]) -> bytes:
    """The bytes of a pointer with this value."""
    return json.dumps(with_checksum(value), indent=1).encode()


def write(documents: Documents, name: PurePath, value: Mapping[str, Json]) -> bool:
    """Replaces a pointer that holds another value, is damaged or missing; durable before this returns.

    Returns whether it was written. An equal value writes nothing, so that the pointer keeps its stamp.
    """
    data = text(value)
    return documents.read(name) != data and documents.update(name, lambda _: data)


def remove(documents: Documents, name: PurePath) -> None:
    """Removes a pointer, such as a request that was answered; a missing one is no error."""
    if documents.read(name) is not None:
        documents.update(name, lambda _: None)
