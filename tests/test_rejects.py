"""Rejected rows are stored wherever they lie among the others: alone, at an end, in runs, of any reason and source."""

import random

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from helpers import hostile
from helpers.formats import WRITERS, random_posts
from moe_core.data import checks, images, ingest
from moe_core.data.rejects import REASONS
from moe_core.data.sources.raw import RAW
from moe_core.data.sources.shards import find_shards, read_shard
from moe_core.settings import Data
from moe_core.stages.data.rows import stored_counts
from moe_core.tables.location import tables_in
from moe_core.tables.memory import copied
from moe_core.tables.reading import read_rows
from moe_core.tables.shards import replace_rows
from moe_core.tables.vectors import vectors_in, write_vectors

CHUNK, ROWS = 8, 24
PLACES = {
    "alone": {11},
    "first of the shard": {0},
    "last of the shard": {ROWS - 1},
    "both ends of a chunk": {8, 15},
    "across two chunks": {6, 7, 8, 9},
    "every other": set(range(0, ROWS, 2)),
    "all but one": set(range(ROWS)) - {12},
}
GOOD = hostile.file_of(hostile.picture(width=8, height=8))
FILES = {reason: data for _, data, reason in hostile.images() if reason in images.REASONS}
BAD = {
    "taken_down": {"user": "gone"},
    "no_id": {"id": None},
    "bad_id": {"id": "a\nb"},
    "too_many_tags": {"tags": [str(n) for n in range(1001)]},
    "no_tags": {"tags": []},
    "bad_split": {"split": "holdout"},
    "duplicate_id": {},
    "internal_error": {"image": b"a mistake"},
    "of the reader": {"reason": "bad_row", "detail": "a line"},
    "of the reader, nothing known": {"id": None, "tags": None, "reason": "too_long", "detail": None},
} | {reason: {"image": data} for reason, data in FILES.items()}


def test_every_reason_is_tried():
    assert set(BAD) >= set(REASONS)


def decode(data, *more):
    if data == b"a mistake":
        raise ZeroDivisionError
    return RIGHT(data, *more)


RIGHT = images.decode


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", BAD)
def test_rejects_of_a_reason_anywhere(kind, place, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "CHUNK_ROWS", CHUNK)
    monkeypatch.setattr(images, "decode", decode)
    bad_N = [n in PLACES[place] for n in range(ROWS)]
    if kind == "duplicate_id":
        bad_N[0] = False  # the first of them is a post
    good = [{"id": f"p{n}", "image": GOOD, "tags": ["cat", f"t{n}"], "user": "u"} for n in range(ROWS)]
    rows = [row | BAD[kind] if bad else row for row, bad in zip(good, bad_N, strict=True)]
    if kind == "duplicate_id":
        rows = [row | {"id": "p0"} if bad else row for row, bad in zip(rows, bad_N, strict=True)]
    batches = [pa.RecordBatch.from_pylist(rows, schema=RAW)]
    data = Data(image_size=8, max_reject_rate=1)
    taken_down = (lambda post, user: user == "gone") if kind == "taken_down" else None
    done = ingest.ingest(tables_in(tmp_path), "s", batches, data, lambda _: None, taken_down=taken_down)
    reason = BAD[kind].get("reason", kind)
    assert dict(done.count.reasons) == ({reason: sum(bad_N)} if any(bad_N) else {})
    names = ["position", "id", "written"]
    posts = read_rows(tables_in(tmp_path).posts, done.posts_version, "s", names).to_pylist()
    wanted = [{"position": n, "id": f"p{n}", "written": good[n]["tags"]} for n, bad in enumerate(bad_N) if not bad]
    assert posts == wanted
    rejects = read_rows(tables_in(tmp_path).rejects, done.rejects_version, "s", [*names, "reason"]).to_pylist()
    assert [row["position"] for row in rejects] == [n for n, bad in enumerate(bad_N) if bad]
    assert {row["reason"] for row in rejects} <= {reason}
    for row in rejects:
        was, nothing = rows[row["position"]], kind == "taken_down"
        assert row["id"] == (None if nothing else was["id"])
        assert row["written"] == (None if nothing else was["tags"] and was["tags"][:20])


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("place", [{8}, {0}, {127, 128}])
def test_a_few_posts_without_tags_of_every_source(name, place, tmp_path):
    posts = random_posts(140)
    good = next(post["image"] for post in posts if _usable(post["image"]))
    for n, post in enumerate(posts):
        post["image"], post["tags"] = good, [] if n in place else [f"t{n}"]
    (tmp_path / "in").mkdir()
    source = WRITERS[name](posts, tmp_path / "in")
    (shard,) = find_shards(source)
    batches = read_shard(source, shard, tmp_path / "cache")
    done = ingest.ingest(tables_in(tmp_path), shard.key, batches, Data(image_size=8), lambda _: None)
    assert dict(done.count.reasons) == {"no_tags": len(place)}
    assert stored_counts(tables_in(tmp_path), shard.key, done.posts_version, done.rejects_version) == (
        140 - len(place),
        len(place),
    )


def _usable(data):
    try:
        return bool(images.decode(data, 8))
    except images.Rejected:
        return False


RATES = (0.0005, 0.005, 0.01, 0.03, 0.1, 0.3)


def untagged(rate, seed, folder):
    """4,000 posts, the given share of them without tags, are ingested and counted."""
    draw = random.Random(f"{rate} {seed}")
    bare_N = [draw.random() < rate for _ in range(4000)]
    bare_N[draw.randrange(4000)] = True
    tags = [draw.choice(([], None)) if bare else [f"t{draw.randrange(50)}"] * draw.randrange(1, 4) for bare in bare_N]
    table = pl.DataFrame({"id": [f"p{n}" for n in range(4000)], "tags": tags}).to_arrow()
    table = table.append_column("image", pa.array([GOOD] * 4000))
    batches = [
        pa.RecordBatch.from_pylist(batch.to_pylist(), schema=RAW) for batch in table.to_batches(max_chunksize=1000)
    ]
    done = ingest.ingest(tables_in(folder), "s", batches, Data(image_size=8), lambda _: None)
    assert dict(done.count.reasons) == {"no_tags": sum(bare_N)}
    assert stored_counts(tables_in(folder), "s", done.posts_version, done.rejects_version) == (
        4000 - sum(bare_N),
        sum(bare_N),
    )


@pytest.mark.parametrize("rate", RATES)
def test_posts_are_ingested_whatever_share_of_them_has_no_tags(rate, tmp_path):
    untagged(rate, 0, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("rate", RATES)
def test_posts_are_ingested_whatever_share_of_them_has_no_tags_ten_times(rate, seed, tmp_path):
    untagged(rate, seed, tmp_path)


LISTS = pa.schema(
    [("position", pa.int64()), ("text", pa.string()), ("data", pa.binary()), ("many", pa.list_(pa.string()))]
)
PARTS = [[], None, [], ["a", "bc"], [""], [None], ["déf", None, "g"]]


@pytest.mark.parametrize("through_ipc", [False, True])
def test_any_slice_of_any_column_is_stored_as_it_is(through_ipc, tmp_path):
    draw = random.Random(3)
    rows = []
    for n in range(60):
        text = draw.choice([None, "", "x" * n])
        rows.append(
            {"position": n, "text": text, "data": None if text is None else text.encode(), "many": draw.choice(PARTS)}
        )
    whole = pa.RecordBatch.from_pylist(rows, schema=LISTS)
    wanted, batches, first = [], [], 0
    while first < len(rows):
        length = draw.choice([1, 1, 2, 5])
        piece = whole.slice(first, length)
        if through_ipc:  # as the rejects go
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, LISTS) as stream:
                stream.write_batch(copied(piece))
            (piece,) = pa.ipc.open_stream(sink.getvalue())
        batches.append(piece)
        wanted += rows[first : first + length]
        first += length + draw.choice([0, 1])
    version = replace_rows(tables_in(tmp_path).posts, LISTS, "s", batches)
    assert read_rows(tables_in(tmp_path).posts, version, "s", LISTS.names).to_pylist() == wanted


def test_vectors_beside_slices_are_stored_as_they_are(tmp_path):
    import lance

    columns = {"id": pa.string(), "tags": pa.list_(pa.string())}
    ids, tags = pa.array([f"p{n}" for n in range(40)]), pa.array([["a"] if n % 8 == 0 else [] for n in range(40)])
    parts = [
        ({"id": ids[first : first + 5], "tags": tags.cast(columns["tags"])[first : first + 5]}, np.full((5, 2), first))
        for first in range(0, 40, 5)
    ]
    assert write_vectors(tmp_path / "v.lance", columns, "vector", 2, iter(parts)) == 40
    table = lance.dataset(str(tmp_path / "v.lance")).to_table()
    assert table["id"].to_pylist() == ids.to_pylist()
    assert table["tags"].to_pylist() == tags.to_pylist()
    assert np.concatenate(list(vectors_in(tmp_path / "v.lance", "vector")))[:, 0].tolist() == [
        n // 5 * 5 for n in range(40)
    ]
