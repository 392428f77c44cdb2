import json
import pickle
import subprocess
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import hostile
from moe_core.data import checks, images, ingest
from moe_core.data.images import Picture, Rejected, decode
from moe_core.data.rejects import REASONS, REJECTS, Rejects
from moe_core.data.sources.raw import RAW
from moe_core.settings import Data
from moe_core.stages.data.rows import stored_counts
from moe_core.tables.location import tables_in
from moe_core.tables.reading import read_rows

SECONDS, MEGABYTES = 5, 1000  # at most, for any file
ALL = Data(image_size=16, max_reject_rate=1)
SCHEMA = pa.schema(
    [*(f for f in RAW if f.name not in ("reason", "detail")), ("reason", pa.string()), ("detail", pa.string())]
)
IMAGES, ROWS = hostile.images(), hostile.rows()


@pytest.fixture(scope="module")
def files():
    return [*IMAGES, *hostile.large()]


def batch(rows):
    good = {"image": hostile.file_of(hostile.picture()), "tags": ["cat"]}
    return pa.RecordBatch.from_pylist([good | row for row in rows], schema=SCHEMA)


def run(tmp_path, rows, data=ALL, **more):
    batches = [batch(rows[at : at + 7]) for at in range(0, len(rows), 7)]
    return ingest.ingest(tables_in(tmp_path), "s", batches, data, lambda _: None, source="here/s.parquet", **more)


def outcomes(tmp_path, done):
    """{position: "ok" or the reason}"""
    posts = read_rows(tables_in(tmp_path).posts, done.posts_version, "s", ["position"]).to_pylist()
    rejects = read_rows(tables_in(tmp_path).rejects, done.rejects_version, "s", ["position", "reason"]).to_pylist()
    return {row["position"]: row.get("reason", "ok") for row in [*posts, *rejects]}


def test_there_are_at_least_sixty_of_them():
    assert len(IMAGES) >= 60
    assert len(ROWS) >= 40


@pytest.mark.parametrize("threads", [1, 3])
def test_each_has_the_outcome_written_beside_it_and_the_sums_add_up(tmp_path, threads, files):
    rows = [{"id": name, "image": data} for name, data, _ in files] + [{"id": name} | row for name, row, _ in ROWS]
    wanted = [outcome for *_, outcome in [*files, *ROWS]]
    done = run(tmp_path, rows, threads=threads)
    found = outcomes(tmp_path, done)
    names = [name for name, *_ in [*files, *ROWS]]
    wrong = {names[n]: (found.get(n), want) for n, want in enumerate(wanted) if found.get(n) != want}
    assert wrong == {}
    assert done.count.read == len(rows) == done.count.accepted + done.count.rejected
    assert done.count.accepted == wanted.count("ok")
    assert dict(done.count.reasons) == dict(Counter(reason for reason in wanted if reason != "ok"))
    assert stored_counts(tables_in(tmp_path), "s", done.posts_version, done.rejects_version) == (
        done.count.accepted,
        done.count.rejected,
    )


def test_each_reason_is_in_the_table_and_has_a_case(files):
    assert {outcome for *_, outcome in [*files, *ROWS]} - {"ok", "video"} == set(REASONS) - {
        "internal_error",
        "taken_down",
    }


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_no_file_takes_five_seconds_or_a_gigabyte(tmp_path, files):
    (tmp_path / "files").write_bytes(pickle.dumps([(name, data) for name, data, _ in files if data]))
    code = (
        "import json, pickle, re, sys, time\n"
        "from moe_core.data.images import Rejected, decode\n"
        "out = []\n"
        "for name, data in pickle.load(open(sys.argv[1], 'rb')):\n"
        "    began = time.process_time()\n"
        "    try: decode(data, 64, 8, True)\n"
        "    except Rejected: pass\n"
        "    high = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())\n"  # not inherited by exec
        "    out.append((name, time.process_time() - began, int(high[1]) // 1024))\n"
        "print(json.dumps(out))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "files")], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert [(name, seconds) for name, seconds, _ in found if seconds > SECONDS] == []
    assert [(name, megabytes) for name, _, megabytes in found if megabytes > MEGABYTES][:1] == []


def test_a_reject_says_where_it_came_from(tmp_path):
    done = run(tmp_path, [{"id": "a"}, {"id": "b", "image": b"%PDF-1.7"}])
    rows = read_rows(tables_in(tmp_path).rejects, done.rejects_version, "s", REJECTS.names).to_pylist()
    assert rows == [
        {
            "shard": "s",
            "position": 1,
            "source": "here/s.parquet",
            "user": None,
            "id": "b",
            "written": ["cat"],
            "reason": "not_an_image",
            "detail": "looks like PDF",
        }
    ]


def test_a_post_with_a_million_tags_keeps_twenty_of_them_among_the_rejects(tmp_path):
    done = run(tmp_path, [{"id": "a", "tags": ["cat"] * 1_000_000}, {"id": "b", "tags": ["x" * 200_000]}])
    rows = read_rows(tables_in(tmp_path).rejects, done.rejects_version, "s", ["written", "detail"]).to_pylist()
    assert [len(row["written"]) for row in rows] == [20, 1]
    assert rows[0]["detail"] == "1000000 tags, 3000000 bytes"
    assert len(rows[1]["written"][0]) == 100


def test_a_clock_that_cannot_be_right_says_nothing(tmp_path):
    clocks = [datetime(9999, 1, 1), datetime(2020, 2, 2), datetime(1, 1, 1), None]
    done = run(tmp_path, [{"id": str(n), "taken_at": clock} for n, clock in enumerate(clocks)])
    taken = read_rows(tables_in(tmp_path).posts, done.posts_version, "s", ["taken_at"])["taken_at"].to_pylist()
    assert taken == [None, datetime(2020, 2, 2), None, None]


def test_an_error_names_reasons_and_rows_and_the_rejects_can_be_read(tmp_path):
    rows = [{"id": "a\x1b[31m", "image": b""}, {"id": "b", "image": b"%PDF-1.7"}, {"id": "c"}]
    with pytest.raises(ValueError, match="posts rejected") as why:
        run(tmp_path, rows, Data(image_size=16, max_reject_rate=0.5))
    text = str(why.value)
    # rows, no ids: Dagster's log keeps the text, and a takedown must not leave an id there
    assert "2 of 3 posts rejected (bad_id 1, not_an_image 1; for example row 0: bad_id; row 1: not_an_image)" in text
    assert "\x1b" not in text
    version = int(text.rpartition("in version ")[2].split()[0])
    found = read_rows(tables_in(tmp_path).rejects, version, "s", ["id", "reason"]).to_pylist()
    assert found == [{"id": "a\x1b[31m", "reason": "bad_id"}, {"id": "b", "reason": "not_an_image"}]


# Faults: the handlers themselves go wrong.


def test_a_mistake_of_ours_on_one_row_is_a_counted_reject(tmp_path, monkeypatch):
    right = images.encode

    def wrong(pixels, size, store):
        if wrong.calls == 1:
            wrong.calls += 1
            raise KeyError("boom")
        wrong.calls += 1
        return right(pixels, size, store)

    wrong.calls = 0
    monkeypatch.setattr(images, "encode", wrong)
    done = run(tmp_path, [{"id": str(n)} for n in range(4)])
    assert outcomes(tmp_path, done) == {0: "ok", 1: "internal_error", 2: "ok", 3: "ok"}
    rejected = read_rows(tables_in(tmp_path).rejects, done.rejects_version, "s", ["detail"])
    assert rejected["detail"].to_pylist() == ["KeyError: 'boom'"]


@pytest.mark.parametrize(
    ("module", "where"), [(checks, "checked"), (ingest, "convert"), (checks, "canonical_lists"), (ingest, "signature")]
)
@pytest.mark.parametrize("call", [0, 1])
def test_a_mistake_of_ours_on_many_rows_fails_the_shard_and_leaves_nothing(tmp_path, monkeypatch, module, where, call):
    right, calls = getattr(module, where), iter(range(100))

    def wrong(*arguments, **more):
        if next(calls) == call:
            raise AttributeError("boom")
        return right(*arguments, **more)

    monkeypatch.setattr(module, where, wrong)
    with pytest.raises(AttributeError, match="boom"):
        run(tmp_path, [{"id": str(n)} for n in range(20)])
    import lance

    assert lance.dataset(str(tmp_path / "posts.lance")).count_rows() == 0


def test_a_row_that_is_lost_fails_the_shard(tmp_path, monkeypatch):
    right = Rejects.add
    monkeypatch.setattr(Rejects, "add", lambda self, rows: right(self, rows[1:]))
    with pytest.raises(RuntimeError, match=r"shard s: 3 read, 2 \+ 0 kept: a row was lost; nothing was replaced"):
        run(tmp_path, [{"id": "a"}, {"id": "b"}, {"id": "c", "tags": []}])


def test_a_source_that_breaks_off_fails_the_shard(tmp_path):
    def breaks():
        yield batch([{"id": "a"}])
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        ingest.ingest(tables_in(tmp_path), "s", breaks(), ALL, lambda _: None)


def test_large_files_are_in_flight_one_at_a_time(monkeypatch):
    monkeypatch.setattr(checks, "CHUNK_BYTES", 1000)
    sizes = [400, 400, 400, 5000, 10, 10]
    rows = [{"id": str(n), "image": b"x" * size} for n, size in enumerate(sizes)]
    chunks = [len(chunk.files) for chunk in checks.chunks_of([batch(rows)], ALL, None)]
    assert chunks == [2, 1, 1, 2]


# Fuzzing: whatever the bytes, a picture or a reason.


@given(st.binary(max_size=2000))
@settings(deadline=None, max_examples=200)
def test_any_bytes_are_a_picture_or_have_a_reason(data):
    _decoded(data)


@given(
    st.sampled_from([data for name, data, _ in IMAGES if data and len(data) < 20_000]),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=0, max_size=8), st.integers(0, 8)), min_size=1, max_size=5),
)
@settings(deadline=None, max_examples=400)
def test_any_damage_to_a_file_leaves_a_picture_or_a_reason(data, damages):
    for place, put, taken in damages:
        at = int(place * len(data))
        data = data[:at] + put + data[at + taken :]
    _decoded(data)


def _decoded(data):
    found: Picture | Rejected
    try:
        found = decode(data, 16, 8, True)
    except Rejected as why:
        found = why
    if isinstance(found, Rejected):
        assert found.reason in images.REASONS
        assert len(found.detail) <= 200
    else:
        assert len(found.pixels) == 16 * 16 * 3
