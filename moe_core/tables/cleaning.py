"""Removes what no Lance tag needs; finds and releases what holds rows that were taken down."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from moe_core.errors import StorageFailed
from moe_core.tables.lance_tags import advance_lance_tags, delete_lance_tag, lance_tags, parse_lance_tag, tags_of
from moe_core.tables.location import Table
from moe_core.tables.shards import gather, outdated, retried
from moe_core.tables.versions import at, contents, forget_opened, pieces_of

TRIES = 3  # of removing files


@dataclass(frozen=True)
class Freed:
    """What a clean-up removed, or would remove."""

    versions: int = 0
    files: int = 0
    bytes: int = 0


def search(table: Table, columns: list[str]) -> Iterator[tuple[str, str, pa.RecordBatch]]:
    """(data file, shard, rows) of every version, each data file once."""
    if not table.exists():
        return
    files: dict[int, set[str]] = {}
    for row in _rows(table, table.open().tracked_files):
        if row["type"] == "data file":
            files.setdefault(row["version"], set()).add(Path(row["path"]).name)
    seen: set[str] = set()
    for version in sorted(files, reverse=True):
        if files[version] <= seen:
            continue
        data, pieces = at(table, version)
        present = [name for name in columns if name in data.schema.names]
        for shard, piece in ((shard, piece) for shard, of_shard in pieces.items() for piece in of_shard):
            if piece.file in seen:
                continue
            seen.add(piece.file)
            with table.streaming():
                for batch in data.scanner(columns=present, fragments=[data.get_fragment(piece.fragment)]).to_batches():
                    yield piece.file, shard, batch


def release(table: Table, files: set[str]) -> list[str]:
    """Deletes the tags of versions that hold any of the data `files`, except where the latest version serves them.

    Returns the names of the deleted tags. `clean` then removes the files.
    """
    advance_lance_tags(table)
    newest, deleted = table.open().version, []
    by_version = sorted(lance_tags(table).items(), key=lambda item: item[1])  # each is opened once
    for lance_tag, version in by_version:
        if version != newest and any(p.file in files for of_shard in at(table, version)[1].values() for p in of_shard):
            delete_lance_tag(table, lance_tag)
            deleted.append(lance_tag)
    return deleted


def fence(table: Table) -> None:
    """Refuses rows of writers that were taken for dead and wake up later. Raises LockHeld while rows are written."""
    with table.cleaning() as check:
        retried(table, lambda: table.fence(check))


def clean(
    table: Table,
    dry_run: bool = False,
    places: Sequence[tuple[str, int | str | None]] = (),
    without: Sequence[str] = (),
) -> Freed:
    """Removes versions that no Lance tag names and files that no version names. Raises LockHeld while rows are written.

    First the rows of `places` are gathered and the tags `without` deleted; a dry run only takes that into account.
    """
    if not table.exists():
        return Freed()
    with table.cleaning():
        freed = _unneeded(table, places, without)
    if dry_run or not (freed.versions or freed.files or without):
        return freed
    gather(table, places)
    for lance_tag in without:
        delete_lance_tag(table, lance_tag)
    with table.cleaning() as check:
        retried(table, lambda: table.fence(check))  # whose files go now
        advance_lance_tags(table)
        with table.committing():
            check()
            _remove_old_versions(table)
    forget_opened()
    return freed


def _remove_old_versions(table: Table) -> None:
    how: dict[str, Any] = {
        "retain_versions": 1,  # not by their age: clocks of machines differ
        "delete_unverified": True,  # no process writes meanwhile
        "error_if_tagged_old_versions": False,
    }
    data = table.open()
    for _ in range(TRIES):
        if not table.ask(lambda: data.cleanup_old_versions(**how)).failed_deletes:
            return
    raise StorageFailed(f"{table}: files that nothing needs could not be removed: try again, or see who may delete")


def _unneeded(table: Table, places: Sequence[tuple[str, int | str | None]], without: Sequence[str]) -> Freed:
    """Versions and files that neither the latest version, with `places` in it, needs nor a tag that it cannot serve."""
    data = table.open()
    older = outdated(table, data, places)
    pieces = pieces_of(data) | {shard: old_pieces.get(shard, []) for shard, (_, old_pieces) in older.items()}
    kept = set() if older else {data.version}
    for lance_tag, tag in tags_of(table, data).items():
        named = parse_lance_tag(lance_tag)
        if lance_tag not in without and (not named or tag["metadata"].get("rows") != contents(pieces, named[0])):
            kept.add(tag["version"])
    tracked = _rows(table, data.tracked_files)
    wanted = {row["path"] for row in tracked if row["version"] in kept}
    wanted |= {f"data/{piece.file}" for of_shard in pieces.values() for piece in of_shard}
    gone = [f for f in _rows(table, data.all_files) if f["path"].startswith("data/")]
    gone = [f for f in gone if f["path"] not in wanted]
    return Freed(len({r["version"] for r in tracked} - kept), len(gone), sum(f["size_bytes"] for f in gone))


def _rows(table: Table, files: Callable[[], Any]) -> list[dict[str, Any]]:
    """What lance tells of files."""
    return table.ask(lambda: files().read_all().to_pylist())
