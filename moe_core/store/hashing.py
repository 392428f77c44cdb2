"""Hashes of contents, and checksums of JSON documents."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Json = Any
VERSION_CHARACTERS = 20  # 80 bits of SHA-256: a billion artifacts collide with probability below 1e-6


def content_hash(value: Json) -> str:
    """Hash of a JSON value, the same for the same value in any key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:VERSION_CHARACTERS]


def with_checksum(document: Mapping[str, Json]) -> dict[str, Json]:
    """The document with a hash of its content, by which a reader knows that it is complete."""
    return {**document, "checksum": content_hash(dict(document))}


def without_checksum(text: bytes) -> dict[str, Json]:
    """The document in a JSON text that was written with its checksum. Raises ValueError for any other text."""
    try:
        content: dict[str, Json] = json.loads(text)
        intact = content.pop("checksum") == content_hash(content)
    except (KeyError, TypeError, AttributeError):
        raise ValueError("it is no table with a checksum") from None
    except RecursionError:
        raise ValueError("its values are nested too deep") from None
    if not intact:
        raise ValueError("its checksum does not match")
    return content


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
