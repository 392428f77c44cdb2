"""Small sources that unfold to gigabytes are refused, or their rows rejected, in a bounded memory, and named."""

import json
import subprocess
import sys

import pytest

from helpers import bombs

FORMATS = {"x.parquet": "parquet", "x.arrow": "arrow", "x.tar": "webdataset", "x.tar.gz": "webdataset"}
MEGABYTES = 2500  # the largest that is decoded at once has a gigabyte, and is copied
SCRIPT = """
import json, resource, sys
from pathlib import Path
from moe_core.data.ingest import ingest
from moe_core.data.sources.shards import find_shards, read_shard
from moe_core.tables.location import tables_in
from moe_core.settings import Data, Source

limit = int(sys.argv[1]) << 20
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for folder, format, name in json.loads(sys.argv[2]):
    try:
        (shard,) = find_shards(Source(format=format, uri=f"{folder}/{name}"))
        batches = read_shard(Source(format=format, uri=shard.path), shard)
        if limit:  # lance's threads reserve gigabytes
            said = {"read": sum(map(len, batches))}
        else:
            done = ingest(tables_in(Path(folder)), "x", batches, Data(image_size=8, max_reject_rate=1), lambda _: None)
            said = dict(done.count.reasons) | {"ok": done.count.accepted}
    except ValueError as error:
        said = str(error)
    # of this process alone: getrusage counts what the one that started it held, too
    (peak,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    print(json.dumps([said, int(peak.split()[1]) >> 10]), flush=True)
"""


def outcomes(written, tmp_path, limit=0):
    """For each bomb the error or the counts, and the highest memory so far in MiB; all are read by one process."""
    places = []
    for number, (_, file, write) in enumerate(written):
        folder = tmp_path / f"{number:02d}"
        folder.mkdir()
        write(folder / file)
        places.append((str(folder), FORMATS[file], file))
    command = [sys.executable, "-c", SCRIPT, str(limit), json.dumps(places)]
    done = subprocess.run(command, capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(written), (written[len(found)][:2], done.stderr[-2000:])
    return {(name, file): said for (name, file, _), said in zip(written, found, strict=True)}


def check(found, tmp_path):
    for (name, file), (said, memory) in found.items():
        assert memory < MEGABYTES, (name, file, memory)
        if isinstance(said, str):
            assert f"/{file}" in said, (name, said)
            assert "\n" not in said
            assert any(word in said for word in ("refused", "more text than any post", "damaged", "more memory")), said


@pytest.mark.slow
def test_sources_that_unfold_are_refused_in_a_bounded_memory(tmp_path):
    found = outcomes(bombs.BOMBS, tmp_path)
    check(found, tmp_path)
    assert found["image in a dictionary", "x.parquet"][0].startswith(
        f"{tmp_path}/00/x.parquet is refused: it unfolds to"
    )
    assert found["map of holes in a record", "x.tar"][0] == {"bad_row": 1, "no_tags": 1, "ok": 0}
    assert found["text of 20 MB", "x.tar.gz"][0] == {"too_large": 1, "ok": 0}
    refused = [said for (_, file), (said, _) in found.items() if file in ("x.tar", "x.tar.gz") and "refused" in said]
    assert len(refused) >= 8
    assert not [said for said in refused if "method gz" in said]


@pytest.mark.slow
def test_under_a_limit_of_memory_the_file_is_named(tmp_path):
    some = [
        one
        for one in bombs.BOMBS
        if one[:2] in (("image in a dictionary", "x.parquet"), ("images of one width", "x.parquet"))
    ]
    some += [
        (
            "zeros",
            "x.parquet",
            lambda path: bombs.parquet(path, bombs.few(2, image=bombs.pa.array([bytes(250_000_000)] * 2))),
        )
    ]
    found = outcomes(some, tmp_path, limit=1100)
    check(found, tmp_path)


@pytest.mark.soak
def test_large_sources_that_unfold_are_refused_in_a_bounded_memory(tmp_path):
    found = outcomes(bombs.LARGE_BOMBS, tmp_path)
    check(found, tmp_path)
    assert [name for name, (said, _) in found.items() if not isinstance(said, str)] == []


def test_what_is_as_large_as_it_says_is_read(tmp_path):
    """Real tables: words in a dictionary, a compressed batch, a picture in many rows."""
    rows = bombs.table(300)
    bombs.parquet(tmp_path / "a.parquet", rows)
    bombs.arrow(tmp_path / "b.arrow", rows, compression="zstd")
    bombs.arrow(tmp_path / "c.arrow", rows, bombs.pa.ipc.new_stream, compression="lz4")
    from moe_core.data.sources.shards import find_shards, read_shard
    from moe_core.settings import Source

    for name in ("a.parquet", "b.arrow", "c.arrow"):
        source = Source(format=name.partition(".")[2], uri=str(tmp_path / name))
        (shard,) = find_shards(source)
        found = [row for batch in read_shard(source, shard) for row in batch.to_pylist()]
        assert [row["id"] for row in found] == [f"p{n}" for n in range(300)]
        assert {(row["image"], tuple(row["tags"])) for row in found} == {(bombs.PICTURE, ("cat",))}
