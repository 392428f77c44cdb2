"""What no pin needs is removed; what holds forgotten rows is found and let go."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from moe_core.store.locks import exclusive
from moe_core.tables.paths import lance_path
from moe_core.tables.pins import parse_pin, pins, raise_pins, unpin
from moe_core.tables.shards import absent, gather
from moe_core.tables.versions import at, committing, contents, forget_opened, is_there, pieces_of, writers


@dataclass(frozen=True)
class Freed:
    """What a clean-up removed, or would."""

    versions: int = 0
    files: int = 0
    bytes: int = 0


def search(path: Path, columns: list[str]) -> Iterator[tuple[str, str, pa.RecordBatch]]:
    """(data file, shard, rows) of everything in any version that is left, each data file once."""
    import lance

    if not is_there(path):
        return
    files: dict[int, set[str]] = {}
    for row in lance.dataset(lance_path(path)).tracked_files().read_all().to_pylist():
        if row["type"] == "data file":
            files.setdefault(row["version"], set()).add(Path(row["path"]).name)
    seen: set[str] = set()
    for version in sorted(files, reverse=True):
        if files[version] <= seen:
            continue
        table, pieces = at(path, version)
        there = [name for name in columns if name in table.schema.names]
        for piece in (piece for mine in pieces.values() for piece in mine):
            if piece.file in seen:
                continue
            seen.add(piece.file)
            for batch in table.scanner(columns=there, fragments=[table.get_fragment(piece.fragment)]).to_batches():
                yield piece.file, piece.shard, batch


def release(path: Path, files: set[str]) -> list[str]:
    """Drops the pins of versions that hold any of the data `files`, but for those that the latest version serves too.

    Returns the names of those dropped. `clean` then removes the files.
    """
    import lance

    raise_pins(path)
    latest, dropped = lance.dataset(lance_path(path)).version, []
    for pin, version in sorted(pins(path).items(), key=lambda named: named[1]):  # each version is opened once
        if version != latest and any(p.file in files for mine in at(path, version)[1].values() for p in mine):
            unpin(path, pin)
            dropped.append(pin)
    return dropped


def clean(
    path: Path,
    dry_run: bool = False,
    places: Sequence[tuple[str, int | str | None]] = (),
    without: Sequence[str] = (),
) -> Freed:
    """Removes versions that no pin names and files that no version names. Raises LockHeld while rows are written.

    First the rows of `places` are gathered and the pins `without` are dropped; a dry run only takes them into account.
    """
    import lance

    if not is_there(path):
        return Freed()
    with exclusive(writers(path), wait=False):
        freed = _unneeded(path, lance.dataset(lance_path(path)), places, without)
    if dry_run or not (freed.versions or freed.files or without):
        return freed
    gather(path, places)
    for pin in without:
        unpin(path, pin)
    raise_pins(path)
    with exclusive(writers(path), wait=False), exclusive(committing(path)):
        lance.dataset(lance_path(path)).cleanup_old_versions(
            older_than=timedelta(microseconds=1),  # 0 would mean two weeks
            delete_unverified=True,  # nobody writes: we hold the lock of the writers
            error_if_tagged_old_versions=False,
        )
    forget_opened()
    return freed


def _unneeded(path: Path, table: Any, places: Sequence[tuple[str, int | str | None]], without: Sequence[str]) -> Freed:
    """Versions and data files that neither the latest version needs, with `places` in it, nor a pin it cannot serve."""
    back = absent(path, table, places)
    pieces = pieces_of(table) | {shard: then.get(shard, []) for shard, (_, then) in back.items()}
    kept = set() if back else {table.version}
    for pin, tag in table.tags.list().items():
        said = parse_pin(pin)
        if pin not in without and (not said or tag["metadata"].get("rows") != contents(pieces, said[0])):
            kept.add(tag["version"])
    tracked = table.tracked_files().read_all().to_pylist()
    wanted = {row["path"] for row in tracked if row["version"] in kept}
    wanted |= {f"data/{piece.file}" for mine in pieces.values() for piece in mine}
    gone = [f for f in table.all_files().read_all().to_pylist() if f["path"].startswith("data/")]
    gone = [f for f in gone if f["path"] not in wanted]
    return Freed(len({r["version"] for r in tracked} - kept), len(gone), sum(f["size_bytes"] for f in gone))
