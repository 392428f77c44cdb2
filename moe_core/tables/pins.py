"""Pins: Lance tags that name the version which holds the rows of one artifact."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from moe_core.store.locks import exclusive
from moe_core.tables.paths import lance_path
from moe_core.tables.versions import committing, content_of, contents, is_there, pieces_of


def pin_of(shard: str, version: str) -> str:
    """Name of the pin of a posts artifact. Lance allows letters, digits, '.', '-' and '_' in it."""
    name = f"posts.{shard}.{version}"
    assert all(c.isalnum() or c in ".-_" for c in name), name
    return name


def parse_pin(name: str) -> tuple[str, str] | None:
    """(shard, version) of a pin's name; None for a tag that is not ours."""
    first, _, rest = name.partition(".")
    shard, dot, version = rest.rpartition(".")
    return (shard, version) if first == "posts" and dot else None


def pins(path: Path) -> dict[str, int]:
    """Version of each pin."""
    import lance

    if not is_there(path):
        return {}
    return {name: int(tag["version"]) for name, tag in lance.dataset(lance_path(path)).tags.list().items()}


def put_pin(table: Any, pin: str, files: Sequence[str]) -> None:
    """Makes or moves a pin to this version of the rows in `files`. One file is replaced: it names the old or the new.

    Others' pins are not looked at, so that it costs the same however many there are.
    """
    try:
        table.tags.update(pin, table.version)
    except ValueError:
        table.tags.create(pin, table.version)
    table.tags.replace_metadata(pin, {"rows": content_of(files)})


def unpin(path: Path, pin: str) -> None:
    import lance

    with exclusive(committing(path)), suppress(ValueError):
        lance.dataset(lance_path(path)).tags.delete(pin)


def raise_pins(path: Path) -> None:
    """Moves to the latest version every pin whose rows it still holds, so that fewer versions are kept."""
    import lance

    with exclusive(committing(path)):
        table = lance.dataset(lance_path(path))
        pieces = pieces_of(table)
        for pin, tag in table.tags.list().items():
            said = parse_pin(pin)
            alive = said and tag["metadata"].get("rows") == contents(pieces, said[0])
            if alive and tag["version"] != table.version:
                table.tags.update(pin, table.version)
