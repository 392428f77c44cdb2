"""Lance tags, each of which names the version that holds the rows of one posts artifact."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from moe_core.store.locks import exclusive
from moe_core.tables.versions import commit_lock, content_of, contents, exists, latest, pieces_of


def lance_tag_of(shard: str, version: str) -> str:
    """Name of a posts artifact's tag. Lance allows letters, digits, '.', '-' and '_' in it."""
    name = f"posts.{shard}.{version}"
    assert all(c.isalnum() or c in ".-_" for c in name), name
    return name


def parse_lance_tag(name: str) -> tuple[str, str] | None:
    """(shard, version) of a tag's name; None for a tag that is not ours."""
    first, _, rest = name.partition(".")
    shard, dot, version = rest.rpartition(".")
    return (shard, version) if first == "posts" and dot else None


def lance_tags(path: Path) -> dict[str, int]:
    """Number of the version that each tag names."""
    if not exists(path):
        return {}
    return {name: int(tag["version"]) for name, tag in latest(path).tags.list().items()}


def put_lance_tag(table: Any, lance_tag: str, files: Sequence[str]) -> None:
    """Creates or moves a tag to this version, with a hash of the rows in `files`; a reader sees the old or the new one.

    Other tags are not read, so the cost does not grow with their number.
    """
    try:
        table.tags.update(lance_tag, table.version)
    except ValueError:
        table.tags.create(lance_tag, table.version)
    table.tags.replace_metadata(lance_tag, {"rows": content_of(files)})


def delete_lance_tag(path: Path, lance_tag: str) -> None:
    with exclusive(commit_lock(path)), suppress(ValueError):
        latest(path).tags.delete(lance_tag)


def advance_lance_tags(path: Path) -> None:
    """Moves each tag to the latest version where that still holds its rows, so that fewer versions are kept."""
    with exclusive(commit_lock(path)):
        table = latest(path)
        pieces = pieces_of(table)
        for lance_tag, tag in table.tags.list().items():
            named = parse_lance_tag(lance_tag)
            unchanged = named and tag["metadata"].get("rows") == contents(pieces, named[0])
            if unchanged and tag["version"] != table.version:
                table.tags.update(lance_tag, table.version)
