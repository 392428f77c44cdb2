"""Lance tags, each of which names the version that holds the rows of one posts artifact."""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from moe_core.tables.location import Table
from moe_core.tables.versions import content_of, contents, pieces_of, tags_of

TRIES = 20  # of creating a tag
MISSING, THERE = "Ref not found", "Ref conflict"  # words of lance


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


def lance_tags(table: Table) -> dict[str, int]:
    """Number of the version that each tag names."""
    if not table.exists():
        return {}
    return {name: int(tag["version"]) for name, tag in tags_of(table, table.open()).items()}


def put_lance_tag(table: Table, data: Any, lance_tag: str, files: Sequence[str]) -> bool:
    """Creates or moves a tag to the version `data`, with a hash of the rows in `files`; a reader sees the old or the
    new one. Returns whether it is new.

    Other tags are not read, so the cost does not grow with their number.
    """
    is_new = False
    for attempt in range(TRIES):
        with _unless(MISSING):
            table.ask(lambda: data.tags.update(lance_tag, data.version))
            break
        with _unless(THERE):
            table.ask(lambda: data.tags.create(lance_tag, data.version))
            is_new = True
            break
        time.sleep(random.uniform(0, 0.1 * attempt))  # in a bucket another process was about to create it
    table.ask(lambda: data.tags.replace_metadata(lance_tag, {"rows": content_of(files)}))
    return is_new


def delete_lance_tag(table: Table, lance_tag: str) -> None:
    with table.committing(), _unless(MISSING):
        tags = table.open().tags
        table.ask(lambda: tags.delete(lance_tag))


def advance_lance_tags(table: Table) -> None:
    """Moves each tag to the latest version where that still holds its rows, so that fewer versions are kept."""
    with table.committing():
        data = table.open()
        pieces = pieces_of(data)
        for lance_tag, tag in tags_of(table, data).items():
            named = parse_lance_tag(lance_tag)
            unchanged = named and tag["metadata"].get("rows") == contents(pieces, named[0])
            if unchanged and tag["version"] != data.version:
                table.ask(partial(data.tags.update, lance_tag, data.version))


@contextmanager
def _unless(words: str) -> Iterator[None]:
    """Ends the block where lance says these words."""
    try:
        yield
    except ValueError as error:
        if words not in str(error):
            raise
