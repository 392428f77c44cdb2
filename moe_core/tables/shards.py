"""Shards are written, replaced, restored and located, by any number of processes at once."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moe_core.errors import LockHeld, MissingInput
from moe_core.failpoints import failpoint
from moe_core.store.files import fsync
from moe_core.store.locks import exclusive, shared
from moe_core.tables.lance_tags import put_lance_tag
from moe_core.tables.memory import copied, passed_on
from moe_core.tables.paths import lance_path
from moe_core.tables.reading import read_rows
from moe_core.tables.runs import Runs
from moe_core.tables.versions import (
    Pieces,
    at,
    commit_lock,
    contents,
    exists,
    fragments,
    latest,
    latest_pieces,
    name_of,
    pieces_of,
    writers_lock,
)

ROWS, BYTES = 65_536, 1 << 30  # of a fragment, at most: lance holds narrow columns of an unfinished one in memory
RETRIES = 20  # of a commit that a writer outside our locks preempts


def replace_rows(
    path: Path, schema: pa.Schema, shard: str, batches: Iterable[pa.RecordBatch], lance_tags: Sequence[str] = ()
) -> int:
    """Replaces all rows of `shard` in one commit; returns the version that holds them, to which `lance_tags` point.

    `position` must ascend. Rows are written before the lock is taken, so shards are written in parallel and only their
    commits queue. A data set with other columns is started again; its old versions stay as long as they are tagged.
    """
    with shared(writers_lock(path)):
        _create(path, schema)
        return swap(path, {shard: _write(path, schema, shard, batches)}, dict.fromkeys(lance_tags, shard))


def _create(path: Path, schema: pa.Schema) -> None:
    """Creates an empty data set of these columns unless there is one."""
    import lance

    with exclusive(commit_lock(path)):
        if not exists(path):
            lance.write_dataset(schema.empty_table(), lance_path(path), mode="create", data_storage_version="stable")
        elif latest(path).schema != schema:
            lance.LanceDataset.commit(lance_path(path), lance.LanceOperation.Overwrite(schema, []))


def _write(path: Path, schema: pa.Schema, shard: str, batches: Iterable[pa.RecordBatch]) -> list[Any]:
    """Fragments of the rows, in data files named after the shard; no version has them yet."""
    from lance.fragment import FragmentMetadata, write_fragments

    failures: list[Exception] = []  # lance passes what a batch raises on as text in an error of its own

    def noting_failures() -> Iterator[pa.RecordBatch]:
        try:
            yield from _ascending(shard, batches)
        except Exception as error:
            failures.append(error)
            raise

    reader = pa.RecordBatchReader.from_batches(schema, noting_failures())
    try:
        new = write_fragments(reader, lance_path(path), schema=schema, max_rows_per_file=ROWS, max_bytes_per_file=BYTES)
    except OSError as error:
        raise failures[0] if failures else error from None
    named = []
    for fragment in new:
        description: dict[str, Any] = fragment.to_json()
        (file,) = description["files"]
        written = path / "data" / file["path"]
        fsync(written)
        file["path"] = name_of(shard, written)
        written.rename(path / "data" / file["path"])
        named.append(FragmentMetadata.from_json(json.dumps(description)))
    if named:
        fsync(path / "data")
    return named


def _ascending(shard: str, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    last = -1
    for batch in batches:
        if len(batch):
            position_B = batch["position"].to_numpy()
            assert (np.diff(position_B, prepend=last) > 0).all(), f"rows of {shard} are out of order"
            last = int(position_B[-1])
            passed_on(batch.nbytes)
        yield copied(batch)


def swap(path: Path, new: Mapping[str, list[Any]], lance_tags: Mapping[str, str]) -> int:
    """Commits `new` fragments in the place of all that their shards have, then moves the tags to that version."""
    import lance
    from lance.commit import CommitConflictError

    failpoint("rows.written", path)
    with exclusive(commit_lock(path)):
        for attempt in range(RETRIES):
            table = latest(path)
            pieces = pieces_of(table)
            old = [piece.fragment for shard in new for piece in pieces.get(shard, ())]
            if not old and not any(new.values()):
                break
            change = lance.LanceOperation.Update(
                removed_fragment_ids=old, new_fragments=[fragment for some in new.values() for fragment in some]
            )
            try:
                table = lance.LanceDataset.commit(lance_path(path), change, read_version=table.version)
                break
            except CommitConflictError:
                if attempt == RETRIES - 1:
                    raise
        failpoint("rows.committed", path)
        for lance_tag, shard in lance_tags.items():
            put_lance_tag(table, lance_tag, [fragment.files[0].path for fragment in new[shard]])
        failpoint("rows.tagged", path)
        return int(table.version)


def shards_in(path: Path) -> dict[str, int]:
    """Rows of each shard in the latest version."""
    return {shard: sum(piece.rows for piece in of_shard) for shard, of_shard in latest_pieces(path).items()}


def values_in(path: Path, shard: str, column: str) -> dict[str, int]:
    """Rows of a shard in the latest version, by the value of a column of texts."""
    if not exists(path):
        return {}
    return Counter(read_rows(path, latest(path).version, shard, [column])[column].to_pylist())


def locate(path: Path, places: Sequence[tuple[str, int | str]]) -> tuple[int, Runs]:
    """One version that holds the rows of all the (shard, version or Lance tag), and where each post lies in it.

    Numbers for LanceDataset.take: shards in the order asked for, `position` inside.
    That is the version that they share, or the latest. Where the latest holds other rows of a shard (it was ingested
    with other settings since), the tagged ones are restored first, by a commit that names their data files again.
    """
    distinct = {version for _, version in places}
    if len(distinct) == 1 and isinstance(next(iter(distinct)), int):
        version = next(iter(distinct))
    else:
        version = gather(path, places)
    _, pieces = at(path, version)
    return int(version), Runs((p.first, p.rows) for shard, _ in places for p in pieces.get(shard, ()))


def gather(path: Path, places: Sequence[tuple[str, int | str | None]]) -> int:
    """Number of the latest version, after restoring to it the rows of all the places; a shard at None has no rows."""
    with shared(writers_lock(path)):
        for _ in range(RETRIES):  # another process may commit meanwhile: compare again with what it made
            table = latest(path)
            older = outdated(path, table, places)
            if not older:
                return int(table.version)
            # the commit numbers them again; their data files are the same
            new = {shard: [replace(f.metadata, id=0) for f in fragments(*old, shard)] for shard, old in older.items()}
            swap(path, new, {v: shard for shard, v in places if shard in older and isinstance(v, str)})
    raise LockHeld(f"{path} is being changed by other processes all the time: try again when they are done", path)


def outdated(path: Path, table: Any, places: Iterable[tuple[str, int | str | None]]) -> dict[str, tuple[Any, Pieces]]:
    """Shards whose rows in `table` differ from those of their version, with the data set and pieces that hold those."""
    tags = table.tags.list()
    pieces = pieces_of(table)
    older: dict[str, tuple[Any, Pieces]] = {}
    for shard, version in places:
        content = contents(pieces, shard)
        if version in tags and tags[str(version)]["metadata"].get("rows") == content:
            continue
        old, old_pieces = (table, {}) if version is None else at(path, version)
        if old.schema != table.schema:
            raise MissingInput(
                f"{path} holds {shard} with other columns now: ingest it again (hardmoe run)", "posts", shard
            )
        if contents(old_pieces, shard) != content:
            older[shard] = old, old_pieces
    return older


def scattered(path: Path) -> list[str]:
    """Shards in more fragments than they need."""
    # files are cut by bytes too: only shards with files far below the limit in rows are worth rewriting
    return [
        shard
        for shard, of_shard in latest_pieces(path).items()
        if len(of_shard) > 1 and sum(p.rows for p in of_shard) / len(of_shard) < ROWS / 4
    ]


def rewrite(path: Path, shard: str, keep: Callable[[pa.RecordBatch], np.ndarray] | None = None) -> int:
    """Writes the rows of a shard again, in whole fragments, and moves its Lance tags to them.

    With `keep`, only the rows that it marks; tags then stay where they are, since the rows are others.
    """
    table = latest(path)
    pieces = pieces_of(table)
    of_shard = fragments(table, pieces, shard)
    content = contents(pieces, shard)
    unchanged = [lance_tag for lance_tag, tag in table.tags.list().items() if tag["metadata"].get("rows") == content]

    def rows() -> Iterator[pa.RecordBatch]:
        if of_shard:
            for batch in table.scanner(fragments=of_shard, scan_in_order=True).to_batches():
                yield batch if keep is None else batch.filter(pa.array(keep(batch)))

    return replace_rows(path, table.schema, shard, rows(), unchanged if keep is None else ())
