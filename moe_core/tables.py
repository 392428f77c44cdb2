"""Lance data sets: posts that are replaced a shard at a time, and vectors written once. The home of lance.

A fragment holds rows of one shard only and never has a row deleted: a shard is written anew and its fragments are
swapped in one commit, so a killed writer leaves nothing visible. A pin is a Lance tag: it names the version that holds
the rows of one artefact, and nothing that a pin needs is ever cleaned up.

Fragments are 65,536 rows (or 1 GiB): best or near it at taking random rows and at scanning JPEGs, and at taking random
rows of raw pixels (docs/data.md has the figures, benchmarks/fragment_size.py makes them).
"""

import ctypes
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moe_core.store import exclusive, shared

TRIM_BYTES = 16 << 20
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
PART = 16_384  # vectors read at once
INDEX_FROM = 5_000  # rows below which a flat scan answers at once and an index would only cost
ROWS, BYTES = 65_536, 1 << 30  # of a fragment, at most: lance holds narrow columns of an unfinished one in memory
RETRIES = 20  # of a commit that a writer outside our locks preempts


@dataclass(frozen=True)
class Piece:
    """A fragment of one version: whose rows it holds, and where they lie among all of that version."""

    shard: str
    fragment: int
    file: str  # name of its data file: random, never used again, so equal names are equal rows
    first: int
    rows: int


@dataclass(frozen=True)
class Located:
    """Rows of several shards in one version: `offsets_N[n]` is where post n lies for LanceDataset.take."""

    version: int
    offsets_N: np.ndarray  # (N,) int64: shards in the order asked for, `position` inside


@dataclass(frozen=True)
class Freed:
    """What a clean-up removed, or would."""

    versions: int = 0
    files: int = 0
    bytes: int = 0


def pin_of(shard: str, version: str) -> str:
    """Name of the pin of a posts artefact. Lance allows letters, digits, '.', '-' and '_' in it."""
    name = f"posts.{shard}.{version}"
    assert all(c.isalnum() or c in ".-_" for c in name), name
    return name


def parse_pin(name: str) -> tuple[str, str] | None:
    """(shard, version) of a pin's name; None for a tag that is not ours."""
    first, _, rest = name.partition(".")
    shard, dot, version = rest.rpartition(".")
    return (shard, version) if first == "posts" and dot else None


def replace_rows(
    path: Path, schema: pa.Schema, shard: str, batches: Iterable[pa.RecordBatch], pins: Sequence[str] = ()
) -> int:
    """Puts rows in the place of all rows of `shard`, in one commit; returns the version that holds them, named `pins`.

    `position` must ascend. Rows are written before the lock is taken, so shards are written in parallel and only their
    commits queue. A data set with other columns is begun anew; its old versions stay as long as they are pinned.
    """
    from lance.fragment import write_fragments

    failures: list[Exception] = []  # lance passes what a batch raises on as text in an error of its own

    def noting() -> Iterator[pa.RecordBatch]:
        try:
            yield from _ascending(shard, batches)
        except Exception as error:
            failures.append(error)
            raise

    reader = pa.RecordBatchReader.from_batches(schema, noting())
    with shared(_writers(path)):
        _begin(path, schema)
        try:
            new = write_fragments(reader, str(path), schema=schema, max_rows_per_file=ROWS, max_bytes_per_file=BYTES)
        except OSError as error:
            raise failures[0] if failures else error from None
        return _swap(path, {shard: list(new)}, dict.fromkeys(pins, shard))


def _begin(path: Path, schema: pa.Schema) -> None:
    """Makes an empty data set of these columns unless it is one of them."""
    import lance

    with exclusive(_committing(path)):
        if not path.exists():
            lance.write_dataset(schema.empty_table(), str(path), mode="create", data_storage_version="stable")
        elif lance.dataset(str(path)).schema != schema:
            lance.LanceDataset.commit(str(path), lance.LanceOperation.Overwrite(schema, []))


def _ascending(shard: str, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    last = -1
    for batch in batches:
        if len(batch):
            position_B = batch["position"].to_numpy()
            assert (np.diff(position_B, prepend=last) > 0).all(), f"rows of {shard} are out of order"
            last = int(position_B[-1])
            _passed_on(batch.nbytes)
        yield batch


def _swap(path: Path, new: Mapping[str, list[Any]], pins: Mapping[str, str]) -> int:
    """Commits `new` fragments in the place of all there are of their shards, then names the version."""
    import lance
    from lance.commit import CommitConflictError

    with exclusive(_committing(path)):
        for attempt in range(RETRIES):
            table = lance.dataset(str(path))
            old = [piece.fragment for piece in _pieces(table) if piece.shard in new]
            if not old and not any(new.values()):
                break
            change = lance.LanceOperation.Update(
                removed_fragment_ids=old, new_fragments=[fragment for some in new.values() for fragment in some]
            )
            try:
                table = lance.LanceDataset.commit(str(path), change, read_version=table.version)
                break
            except CommitConflictError:
                if attempt == RETRIES - 1:
                    raise
        for pin, shard in pins.items():
            _name(table, pin, shard)
        return int(table.version)


def _name(table: Any, pin: str, shard: str) -> None:
    """Makes or moves a pin: one file is replaced, so it names the old version or the new one."""
    if pin in table.tags.list():
        table.tags.update(pin, table.version)
    else:
        table.tags.create(pin, table.version)
    table.tags.replace_metadata(pin, {"rows": _content(_pieces(table), shard)})


def _content(pieces: Iterable[Piece], shard: str) -> str:
    """Digest of the rows of a shard: of the names of its data files, which are written once."""
    return hashlib.sha256(" ".join(p.file for p in pieces if p.shard == shard).encode()).hexdigest()[:20]


_shard_of_file: dict[str, str] = {}  # a data file never changes


def _pieces(table: Any) -> list[Piece]:
    """The fragments of a version in order. One row is read of each that was not seen before."""
    found, first = [], 0
    for fragment in table.get_fragments():
        about = fragment.metadata
        file = str(about.files[0].path)
        found.append(Piece(_shard_of_file.get(file, ""), fragment.fragment_id, file, first, about.num_rows))
        first += about.num_rows
    unknown = [p for p in found if p.file not in _shard_of_file and p.rows]
    if unknown:
        shards = table.take([p.first for p in unknown], columns=["shard"])["shard"].to_pylist()
        _shard_of_file.update((p.file, shard) for p, shard in zip(unknown, shards, strict=True))
    return [replace(p, shard=_shard_of_file.get(p.file, "")) for p in found]


def _fragments(table: Any, pieces: Iterable[Piece], shard: str) -> list[Any]:
    return [table.get_fragment(piece.fragment) for piece in pieces if piece.shard == shard]


@lru_cache(maxsize=8)
def _opened(path: str, version: int) -> tuple[Any, list[Piece]]:
    import lance

    table = lance.dataset(path, version=version)
    return table, _pieces(table)


def _at(path: Path, version: int | str) -> tuple[Any, list[Piece]]:
    """A version by its number or pin. Raises ValueError, saying what to do, for one that is not there."""
    import lance

    try:
        if isinstance(version, str):
            version = int(lance.dataset(str(path)).tags.get_version(version))
        return _opened(str(path), version)
    except (ValueError, OSError) as error:
        what = f"pin {version}" if isinstance(version, str) else f"version {version}"
        raise ValueError(f"{path} has no {what} (was it cleaned up?): ingest again; {error}") from None


def read_rows(path: Path, version: int | str, shard: str, columns: list[str]) -> pa.Table:
    """The rows of a shard at a version (number or pin), in their order in the source; only its fragments are read."""
    table, pieces = _at(path, version)
    fragments = _fragments(table, pieces, shard)
    if not fragments:
        return pa.schema([table.schema.field(name) for name in columns]).empty_table()
    return table.scanner(columns=columns, fragments=fragments, scan_in_order=True).to_table()


def scan_rows(path: Path, version: int | str, shard: str, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of a shard at a version, in their order, at most `rows` at a time; nothing else is in memory."""
    table, pieces = _at(path, version)
    fragments = _fragments(table, pieces, shard)
    if fragments:
        scanner = table.scanner(columns=columns, fragments=fragments, batch_size=rows, scan_in_order=True)
        yield from scanner.to_batches()


def read_positions(path: Path, version: int | str, shard: str, positions: list[int], columns: list[str]) -> pa.Table:
    """Some rows of a shard at a version, by rising position."""
    table, pieces = _at(path, version)
    said = f"position IN ({', '.join(map(str, positions))})"
    scanner = table.scanner(
        columns=columns, filter=said, fragments=_fragments(table, pieces, shard), scan_in_order=True
    )
    return scanner.to_table()


def count_rows(path: Path, version: int | str, shard: str) -> int:
    """How many rows of a shard there are at a version (number or pin)."""
    return sum(piece.rows for piece in _at(path, version)[1] if piece.shard == shard)


def shards_in(path: Path) -> dict[str, int]:
    """Rows of each shard in the latest version."""
    import lance

    found: dict[str, int] = {}
    if path.exists():
        for piece in _pieces(lance.dataset(str(path))):
            found[piece.shard] = found.get(piece.shard, 0) + piece.rows
    return found


def locate(path: Path, places: Sequence[tuple[str, int | str]]) -> Located:
    """One version that holds the rows of all the (shard, version or pin), and where each post lies in it.

    That is the version they share, or the latest. Where the latest holds other rows of a shard (it was ingested with
    other settings since), the pinned ones are put back first, by a commit that names their data files again.
    """
    distinct = {version for _, version in places}
    if len(distinct) == 1 and isinstance(next(iter(distinct)), int):
        version = next(iter(distinct))
    else:
        version = gather(path, places)
    _, pieces = _at(path, version)
    mine: dict[str, list[Piece]] = {}
    for piece in pieces:
        mine.setdefault(piece.shard, []).append(piece)
    offsets = [np.zeros(0, np.int64)]
    for shard, _ in places:
        offsets += [np.arange(p.first, p.first + p.rows, dtype=np.int64) for p in mine.get(shard, ())]
    return Located(int(version), np.concatenate(offsets))


def gather(path: Path, places: Sequence[tuple[str, int | str | None]]) -> int:
    """Number of the latest version once it holds the rows of all the places; of a shard at None, none."""
    import lance

    with shared(_writers(path)):
        for _ in range(RETRIES):  # others may commit between our look and our commit: look again at what came of it
            table = lance.dataset(str(path))
            back = _absent(path, table, places)
            if not back:
                return int(table.version)
            # numbered anew by the commit; their data files are the same
            new = {shard: [replace(f.metadata, id=0) for f in _fragments(*then, shard)] for shard, then in back.items()}
            _swap(path, new, {v: shard for shard, v in places if shard in back and isinstance(v, str)})
    raise ValueError(f"{path} is being changed by others all the time: try again when they are done")


def _absent(path: Path, table: Any, places: Iterable[tuple[str, int | str | None]]) -> dict[str, tuple[Any, Any]]:
    """Of the shards whose rows are others in `table`: the data set and the pieces that hold them."""
    tags = table.tags.list()
    pieces = _pieces(table)
    found: dict[str, tuple[Any, Any]] = {}
    for shard, version in places:
        content = _content(pieces, shard)
        if version in tags and tags[str(version)]["metadata"].get("rows") == content:
            continue
        old, then = (table, []) if version is None else _at(path, version)
        if old.schema != table.schema:
            raise ValueError(f"{path} holds {shard} with other columns now: ingest it again (hardmoe run)")
        if _content(then, shard) != content:
            found[shard] = old, then
    return found


def pins(path: Path) -> dict[str, int]:
    """Version of each pin."""
    import lance

    if not path.exists():
        return {}
    return {name: int(tag["version"]) for name, tag in lance.dataset(str(path)).tags.list().items()}


def unpin(path: Path, pin: str) -> None:
    import lance

    with exclusive(_committing(path)):
        table = lance.dataset(str(path))
        if pin in table.tags.list():
            table.tags.delete(pin)


def raise_pins(path: Path) -> int:
    """Moves to the latest version every pin whose rows it still holds, so that fewer are kept. Returns how many."""
    import lance

    moved = 0
    with exclusive(_committing(path)):
        table = lance.dataset(str(path))
        pieces = _pieces(table)
        for pin, tag in table.tags.list().items():
            said = parse_pin(pin)
            alive = said and tag["metadata"].get("rows") == _content(pieces, said[0])
            if alive and tag["version"] != table.version:
                table.tags.update(pin, table.version)
                moved += 1
    return moved


def scattered(path: Path) -> list[str]:
    """Shards in more fragments than they need."""
    import lance

    if not path.exists():
        return []
    rows: dict[str, list[int]] = {}
    for piece in _pieces(lance.dataset(str(path))):
        rows.setdefault(piece.shard, []).append(piece.rows)
    # files are cut by bytes too: only shards with files far below the limit in rows are worth writing again
    return [shard for shard, n in rows.items() if len(n) > 1 and sum(n) / len(n) < ROWS / 4]


def rewrite(path: Path, shard: str, keep: Callable[[pa.RecordBatch], np.ndarray] | None = None) -> int:
    """Writes the rows of a shard again, in whole fragments, and moves its pins to them.

    With `keep`, only the rows that it marks; pins then stay where they are, for the rows are others.
    """
    import lance

    table = lance.dataset(str(path))
    pieces = _pieces(table)
    fragments = _fragments(table, pieces, shard)
    content = _content(pieces, shard)
    alive = [pin for pin, tag in table.tags.list().items() if tag["metadata"].get("rows") == content]

    def rows() -> Iterator[pa.RecordBatch]:
        if fragments:
            for batch in table.scanner(fragments=fragments, scan_in_order=True).to_batches():
                yield batch if keep is None else batch.filter(pa.array(keep(batch)))

    return replace_rows(path, table.schema, shard, rows(), alive if keep is None else ())


def search(path: Path, columns: list[str]) -> Iterator[tuple[str, str, pa.RecordBatch]]:
    """(data file, shard, rows) of everything in any version that is left, each data file once."""
    import lance

    if not path.exists():
        return
    files: dict[int, set[str]] = {}
    for row in lance.dataset(str(path)).tracked_files().read_all().to_pylist():
        if row["type"] == "data file":
            files.setdefault(row["version"], set()).add(Path(row["path"]).name)
    seen: set[str] = set()
    for version in sorted(files, reverse=True):
        if files[version] <= seen:
            continue
        table, pieces = _at(path, version)
        there = [name for name in columns if name in table.schema.names]
        for piece in pieces:
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
    dropped = []
    for pin, version in pins(path).items():
        if version != lance.dataset(str(path)).version and any(p.file in files for p in _at(path, version)[1]):
            unpin(path, pin)
            dropped.append(pin)
    return dropped


def clean(
    path: Path,
    dry_run: bool = False,
    places: Sequence[tuple[str, int | str | None]] = (),
    without: Sequence[str] = (),
) -> Freed:
    """Removes the versions that no pin names and the files that no version names. Raises Busy while rows are written.

    First the rows of `places` are gathered and the pins `without` are dropped; a dry run only takes them into account.
    """
    import lance

    if not path.exists():
        return Freed()
    with exclusive(_writers(path), wait=False):
        freed = _unneeded(path, lance.dataset(str(path)), places, without)
    if dry_run or not (freed.versions or freed.files or without):
        return freed
    gather(path, places)
    for pin in without:
        unpin(path, pin)
    raise_pins(path)
    with exclusive(_writers(path), wait=False), exclusive(_committing(path)):
        lance.dataset(str(path)).cleanup_old_versions(
            older_than=timedelta(microseconds=1),  # 0 would mean two weeks
            delete_unverified=True,  # nobody writes: we hold the lock of the writers
            error_if_tagged_old_versions=False,
        )
    _opened.cache_clear()
    return freed


def _unneeded(path: Path, table: Any, places: Sequence[tuple[str, int | str | None]], without: Sequence[str]) -> Freed:
    """Versions and data files that neither the latest version needs, with `places` in it, nor a pin it cannot serve."""
    back = _absent(path, table, places)
    pieces = [p for p in _pieces(table) if p.shard not in back]
    pieces += [p for shard, (_, then) in back.items() for p in then if p.shard == shard]
    kept = set() if back else {table.version}
    for pin, tag in table.tags.list().items():
        said = parse_pin(pin)
        if pin not in without and (not said or tag["metadata"].get("rows") != _content(pieces, said[0])):
            kept.add(tag["version"])
    tracked = table.tracked_files().read_all().to_pylist()
    wanted = {row["path"] for row in tracked if row["version"] in kept} | {f"data/{p.file}" for p in pieces}
    gone = [f for f in table.all_files().read_all().to_pylist() if f["path"].startswith("data/")]
    gone = [f for f in gone if f["path"] not in wanted]
    return Freed(len({r["version"] for r in tracked} - kept), len(gone), sum(f["size_bytes"] for f in gone))


def take_rows(path: Path, version: int, rows_B: np.ndarray, columns: list[str]) -> pa.Table:
    """Rows of a version by their number (of `locate`), in the order asked for."""
    table, _ = _at(path, version)
    taken: pa.Table = table.take(rows_B, columns=columns)
    _passed_on(taken.nbytes)
    return taken


def write_vectors(
    path: Path,
    columns: dict[str, pa.DataType],
    name: str,
    width: int,
    parts: Iterable[tuple[dict[str, pa.Array], np.ndarray]],
    index: bool,
) -> int:
    """A new data set of some columns and one float32 vector a row, part by part; returns the number of rows.

    With `index`, a cosine index for search where rows are many.
    """
    import lance

    schema = pa.schema([*columns.items(), (name, pa.list_(pa.float32(), width))])
    stream = (_with_vectors(some, name, vectors_BD).cast(schema) for some, vectors_BD in parts)
    reader = pa.RecordBatchReader.from_batches(schema, stream)
    data = lance.write_dataset(reader, str(path), mode="create", data_storage_version="stable")
    rows = data.count_rows()
    if index and rows >= INDEX_FROM:
        data.create_index(name, "IVF_FLAT", metric="cosine", num_partitions=max(1, round(rows**0.5 / 4)))
    return rows


def _with_vectors(columns: dict[str, pa.Array], name: str, vectors_BD: np.ndarray) -> pa.RecordBatch:
    flat = pa.array(np.ascontiguousarray(vectors_BD, np.float32).reshape(-1))
    return pa.record_batch(columns | {name: pa.FixedSizeListArray.from_arrays(flat, vectors_BD.shape[1])})


def vectors_in(path: Path, name: str) -> Iterator[np.ndarray]:
    """(B, D) float32, part by part in the order they were written."""
    import lance

    for batch in lance.dataset(str(path)).to_batches(columns=[name], batch_size=PART):
        column = batch[name]
        yield column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)


def ids_in(path: Path) -> Iterator[str]:
    """The column `id` of a data set that was written once."""
    import lance

    for batch in lance.dataset(str(path)).to_batches(columns=["id"]):
        yield from batch["id"].to_pylist()


@dataclass(frozen=True)
class TableInfo:
    """What a Lance table of a user's is."""

    schema: pa.Schema
    rows: int
    version: int


def table_info(uri: str) -> TableInfo:
    """Raises ValueError where there is no readable table."""
    import lance

    try:
        table = lance.dataset(uri)
        return TableInfo(table.schema, table.count_rows(), table.version)
    except (ValueError, OSError) as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"{uri} is not a readable Lance table: {why}; damaged, or still being copied?") from None


def scan_table(uri: str, columns: list[str], rows: int, size: int) -> Iterator[pa.RecordBatch]:
    """Batches in the order of the table, of at most `rows` rows and `size` bytes on average. ValueError for damage."""
    import lance

    try:
        table = lance.dataset(uri)
        total = sum(f.file_size_bytes or 0 for part in table.get_fragments() for f in part.metadata.files)
        # rows are what bounds lance's memory: it decodes some batches ahead, and only then cuts them to bytes
        fitting = size * table.count_rows() // max(1, 4 * total)
        yield from table.scanner(
            columns=columns,
            batch_size=max(1, min(rows, fitting)),
            batch_size_bytes=size // 4,
            batch_readahead=1,
            fragment_readahead=1,
            io_buffer_size=size // 2,
        ).to_batches()
    except (ValueError, OSError) as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"{uri} is damaged: {why}; copy it again, or take it away") from None


_bytes_passed = 0


def _passed_on(size: int) -> None:
    """Gives memory back to the system now and then.

    Each of lance's threads allocates from an arena of its own, and glibc keeps what is freed there: without this,
    memory grows with the rows that were read until all arenas are full (benchmarks/memory.py).
    """
    global _bytes_passed
    _bytes_passed += size
    if _bytes_passed >= TRIM_BYTES:
        _bytes_passed = 0
        if _malloc_trim is not None:
            _malloc_trim(0)


def _committing(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _writers(path: Path) -> Path:
    return path.with_name(f".{path.name}.writers")
