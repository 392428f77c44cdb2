"""Shards are written, replaced, restored and located, by any number of processes at once."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from moe_core.errors import LockHeld, MissingInput, Overtaken
from moe_core.failpoints import failpoint
from moe_core.store.hashing import file_hash
from moe_core.tables.lance_tags import delete_lance_tag, put_lance_tag
from moe_core.tables.location import Check, Table
from moe_core.tables.memory import copied, passed_on
from moe_core.tables.paths import open_path
from moe_core.tables.reading import read_rows
from moe_core.tables.runs import Runs
from moe_core.tables.versions import (
    Pieces,
    at,
    content_of,
    contents,
    fragments,
    latest_pieces,
    name_of,
    pieces_of,
    tags_of,
)

T = TypeVar("T")
ROWS, BYTES = 65_536, 1 << 30  # of a fragment, at most: lance holds narrow columns of an unfinished one in memory
RETRIES = 60  # of a commit that others preempt
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0  # seconds before the next one, at most


def replace_rows(
    table: Table, schema: pa.Schema, shard: str, batches: Iterable[pa.RecordBatch], lance_tags: Sequence[str] = ()
) -> int:
    """Replaces all rows of `shard` in one commit; returns the version that holds them, to which `lance_tags` point.

    `position` must ascend. Rows are written before the lock is taken, so shards are written in parallel and only their
    commits queue. New columns at the end are null in the rows that are there. A data set with other columns is started
    again; its old versions stay as long as they are tagged.
    """
    with table.writing() as check:
        _create(table, schema)
        return swap(table, {shard: _write(table, schema, shard, batches)}, dict.fromkeys(lance_tags, shard), check)


def _create(table: Table, schema: pa.Schema) -> None:
    """Creates an empty data set of these columns unless there is one."""

    def create() -> None:
        if not table.exists():
            table.create(schema)
        elif (data := table.open()).schema != schema:
            (table.widen if _begins(schema, data.schema) else table.restart)(data, schema)

    with table.committing():
        retried(table, create)


def _begins(schema: pa.Schema, older: pa.Schema) -> bool:
    """Whether a schema is an older one with more columns behind it: a row without these is a row with nulls."""
    return list(schema)[: len(older)] == list(older)


def _write(table: Table, schema: pa.Schema, shard: str, batches: Iterable[pa.RecordBatch]) -> list[Any]:
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
    with table.scratch(schema) as folder, open_path(folder) as path:
        try:
            new = write_fragments(reader, path, schema=schema, max_rows_per_file=ROWS, max_bytes_per_file=BYTES)
        except OSError as error:
            raise failures[0] if failures else error from None
        files, named = {}, []
        for fragment in new:
            description: dict[str, Any] = fragment.to_json()
            (file,) = description["files"]
            written = folder / "data" / file["path"]
            files[written] = file["path"] = name_of(shard, file_hash(written))
            named.append(FragmentMetadata.from_json(json.dumps(description)))
        table.keep(files)
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


def swap(table: Table, new: Mapping[str, list[Any]], lance_tags: Mapping[str, str], check: Check) -> int:
    """Commits `new` fragments in the place of all that their shards have, then moves the tags to that version.

    `check` raises where this process may not write any more.
    """
    files = {shard: [fragment.files[0].path for fragment in some] for shard, some in new.items()}

    def commit() -> Any:
        data = table.open()
        pieces = pieces_of(data)
        old = [piece.fragment for shard in new for piece in pieces.get(shard, ())]
        if all(contents(pieces, shard) == content_of(files[shard]) for shard in new):
            return data  # as after a lost answer
        check()
        failpoint("rows.checked", table)
        return table.swap(data, old, [fragment for some in new.values() for fragment in some])

    failpoint("rows.written", table)
    with table.committing():
        data = retried(table, commit)
        failpoint("rows.committed", table)
        with _taken_back(table, data.version) as new_tags:
            check()
            failpoint("rows.tagging", table)
            for lance_tag, shard in lance_tags.items():
                try:
                    if put_lance_tag(table, data, lance_tag, files[shard]):
                        new_tags.append(lance_tag)
                except ValueError:  # the version is no more, where this process was taken for dead
                    check()
                    raise
            check()
        failpoint("rows.tagged", table)
        return int(data.version)


@contextmanager
def _taken_back(table: Table, version: int) -> Iterator[list[str]]:
    """Takes back a version, and the tags in the list, where this process was taken for dead before it had put them:
    else rows that were removed meanwhile would stay."""
    new_tags: list[str] = []
    try:
        yield new_tags
    except Overtaken:
        newest = table.open()
        for lance_tag in new_tags:
            delete_lance_tag(table, lance_tag)
        if version < newest.version:
            table.ask(lambda: newest.cleanup_old_versions(versions=[version], error_if_tagged_old_versions=False))
        raise


def retried(table: Table, commit: Callable[[], T]) -> T:
    """What `commit` returns, called again where another process preempts it. Raises LockHeld where that does not end.

    Writers of a data set in a folder wait for each other, but for one outside our locks; those in a bucket do not.
    """
    from lance.commit import CommitConflictError

    for attempt in range(RETRIES):
        try:
            return commit()
        except CommitConflictError:
            time.sleep(random.uniform(0, min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE)))
    raise _is_changed_all_the_time(table)


def _is_changed_all_the_time(table: Table) -> LockHeld:
    return LockHeld(f"{table} is being changed by other processes all the time: try again when they are done", table)


def shards_in(table: Table) -> dict[str, int]:
    """Rows of each shard in the latest version."""
    return {shard: sum(piece.rows for piece in of_shard) for shard, of_shard in latest_pieces(table).items()}


def values_in(table: Table, shard: str, column: str) -> dict[str, int]:
    """Rows of a shard in the latest version, by the value of a column of texts."""
    if not table.exists():
        return {}
    return Counter(read_rows(table, table.open().version, shard, [column])[column].to_pylist())


def locate(table: Table, places: Sequence[tuple[str, int | str]]) -> tuple[int, Runs]:
    """One version that holds the rows of all the (shard, version or Lance tag), and where each post lies in it.

    Numbers for LanceDataset.take: shards in the order asked for, `position` inside.
    That is the version that they share, or the latest. Where the latest holds other rows of a shard (it was ingested
    with other settings since), the tagged ones are restored first, by a commit that names their data files again.
    """
    distinct = {version for _, version in places}
    if len(distinct) == 1 and isinstance(next(iter(distinct)), int):
        version = next(iter(distinct))
    else:
        version = gather(table, places)
    _, pieces = at(table, version)
    return int(version), Runs((p.first, p.rows) for shard, _ in places for p in pieces.get(shard, ()))


def gather(table: Table, places: Sequence[tuple[str, int | str | None]]) -> int:
    """Number of the latest version, after restoring to it the rows of all the places; a shard at None has no rows."""
    with table.writing() as check:
        for _ in range(RETRIES):  # another process may commit meanwhile: compare again with what it made
            data = table.open()
            older = outdated(table, data, places)
            if not older:
                return int(data.version)
            # the commit numbers them again; their data files are the same
            new = {shard: [replace(f.metadata, id=0) for f in fragments(*old, shard)] for shard, old in older.items()}
            swap(table, new, {v: shard for shard, v in places if shard in older and isinstance(v, str)}, check)
    raise _is_changed_all_the_time(table)


def outdated(table: Table, data: Any, places: Iterable[tuple[str, int | str | None]]) -> dict[str, tuple[Any, Pieces]]:
    """Shards whose rows in `data` differ from those of their version, with the data set and pieces that hold those."""
    tags = tags_of(table, data)
    pieces = pieces_of(data)
    older: dict[str, tuple[Any, Pieces]] = {}
    for shard, version in places:
        content = contents(pieces, shard)
        if version in tags and tags[str(version)]["metadata"].get("rows") == content:
            continue
        old, old_pieces = (data, {}) if version is None else at(table, version)
        if not _begins(data.schema, old.schema):
            raise MissingInput(
                f"{table} holds {shard} with other columns now: ingest it again (hardmoe run)", "posts", shard
            )
        if contents(old_pieces, shard) != content:
            older[shard] = old, old_pieces
    return older


def scattered(table: Table) -> list[str]:
    """Shards in more fragments than they need."""
    # files are cut by bytes too: only shards with files far below the limit in rows are worth rewriting
    return [
        shard
        for shard, of_shard in latest_pieces(table).items()
        if len(of_shard) > 1 and sum(p.rows for p in of_shard) / len(of_shard) < ROWS / 4
    ]


def rewrite(table: Table, shard: str, keep: Callable[[pa.RecordBatch], np.ndarray] | None = None) -> int:
    """Writes the rows of a shard again, in whole fragments, and moves its Lance tags to them.

    With `keep`, only the rows that it marks; tags then stay where they are, since the rows are others.
    """
    data = table.open()
    pieces = pieces_of(data)
    of_shard = fragments(data, pieces, shard)
    content = contents(pieces, shard)
    unchanged = [name for name, tag in tags_of(table, data).items() if tag["metadata"].get("rows") == content]

    def rows() -> Iterator[pa.RecordBatch]:
        if of_shard:
            with table.streaming():
                for batch in data.scanner(fragments=of_shard, scan_in_order=True).to_batches():
                    yield batch if keep is None else batch.filter(pa.array(keep(batch)))

    return replace_rows(table, data.schema, shard, rows(), unchanged if keep is None else ())
