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


def with_checksum(said: Mapping[str, Json]) -> dict[str, Json]:
    """With a digest of the rest, by which a reader knows that it is what was written."""
    return {**said, "checksum": content_hash(dict(said))}


def without_checksum(said: dict[str, Json]) -> dict[str, Json]:
    """What was sealed. Raises ValueError, or KeyError where there is no seal."""
    rest = dict(said)
    if rest.pop("checksum") != content_hash(rest):
        raise ValueError("its seal does not match")
    return rest


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
