"""Removes what no Lance tag needs; finds and releases what holds rows that were taken down."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from moe_core.store.locks import exclusive
from moe_core.tables.lance_tags import advance_lance_tags, delete_lance_tag, lance_tags, parse_lance_tag
from moe_core.tables.shards import gather, outdated
from moe_core.tables.versions import at, commit_lock, contents, exists, forget_opened, latest, pieces_of, writers_lock


@dataclass(frozen=True)
class Freed:
    """What a clean-up removed, or would remove."""

    versions: int = 0
    files: int = 0
    bytes: int = 0


def search(path: Path, columns: list[str]) -> Iterator[tuple[str, str, pa.RecordBatch]]:
    """(data file, shard, rows) of every version, each data file once."""
    if not exists(path):
        return
    files: dict[int, set[str]] = {}
    for row in latest(path).tracked_files().read_all().to_pylist():
        if row["type"] == "data file":
            files.setdefault(row["version"], set()).add(Path(row["path"]).name)
    seen: set[str] = set()
    for version in sorted(files, reverse=True):
        if files[version] <= seen:
            continue
        table, pieces = at(path, version)
        present = [name for name in columns if name in table.schema.names]
        for shard, piece in ((shard, piece) for shard, of_shard in pieces.items() for piece in of_shard):
            if piece.file in seen:
                continue
            seen.add(piece.file)
            for batch in table.scanner(columns=present, fragments=[table.get_fragment(piece.fragment)]).to_batches():
                yield piece.file, shard, batch


def release(path: Path, files: set[str]) -> list[str]:
    """Deletes the tags of versions that hold any of the data `files`, except where the latest version serves them.

    Returns the names of the deleted tags. `clean` then removes the files.
    """
    advance_lance_tags(path)
    newest, deleted = latest(path).version, []
    for lance_tag, version in sorted(lance_tags(path).items(), key=lambda item: item[1]):  # each version is opened once
        if version != newest and any(p.file in files for of_shard in at(path, version)[1].values() for p in of_shard):
            delete_lance_tag(path, lance_tag)
            deleted.append(lance_tag)
    return deleted


def clean(
    path: Path,
    dry_run: bool = False,
    places: Sequence[tuple[str, int | str | None]] = (),
    without: Sequence[str] = (),
) -> Freed:
    """Removes versions that no Lance tag names and files that no version names. Raises LockHeld while rows are written.

    First the rows of `places` are gathered and the tags `without` deleted; a dry run only takes that into account.
    """
    if not exists(path):
        return Freed()
    with exclusive(writers_lock(path), wait=False):
        freed = _unneeded(path, latest(path), places, without)
    if dry_run or not (freed.versions or freed.files or without):
        return freed
    gather(path, places)
    for lance_tag in without:
        delete_lance_tag(path, lance_tag)
    advance_lance_tags(path)
    with exclusive(writers_lock(path), wait=False), exclusive(commit_lock(path)):
        latest(path).cleanup_old_versions(
            older_than=timedelta(microseconds=1),  # 0 would mean two weeks
            delete_unverified=True,  # no process writes: we hold the lock of the writers
            error_if_tagged_old_versions=False,
        )
    forget_opened()
    return freed


def _unneeded(path: Path, table: Any, places: Sequence[tuple[str, int | str | None]], without: Sequence[str]) -> Freed:
    """Versions and files that neither the latest version, with `places` in it, needs nor a tag that it cannot serve."""
    older = outdated(path, table, places)
    pieces = pieces_of(table) | {shard: old_pieces.get(shard, []) for shard, (_, old_pieces) in older.items()}
    kept = set() if older else {table.version}
    for lance_tag, tag in table.tags.list().items():
        named = parse_lance_tag(lance_tag)
        if lance_tag not in without and (not named or tag["metadata"].get("rows") != contents(pieces, named[0])):
            kept.add(tag["version"])
    tracked = table.tracked_files().read_all().to_pylist()
    wanted = {row["path"] for row in tracked if row["version"] in kept}
    wanted |= {f"data/{piece.file}" for of_shard in pieces.values() for piece in of_shard}
    gone = [f for f in table.all_files().read_all().to_pylist() if f["path"].startswith("data/")]
    gone = [f for f in gone if f["path"] not in wanted]
    return Freed(len({r["version"] for r in tracked} - kept), len(gone), sum(f["size_bytes"] for f in gone))
