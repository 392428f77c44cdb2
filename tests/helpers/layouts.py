"""Sources in the layouts that people bring."""

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from helpers.formats import tar_of
from moe_core.data.ingest import ingest
from moe_core.data.sources.guessing import guess_format
from moe_core.data.sources.preview import preview
from moe_core.data.sources.shards import find_shards, read_shard
from moe_core.settings import Data, Source
from moe_core.tables.location import tables_in
from moe_core.tables.reading import read_rows

ANYTHING = Data(image_size=16, max_reject_rate=1)


def picture(seed=0, kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def rows_of(source):
    return [row for s in find_shards(source) for batch in read_shard(source, s) for row in batch.to_pylist()]


def ingested(source, root):
    """Posts by id, reasons by id, and (read, accepted, rejected)."""
    posts, reasons, counts = {}, {}, np.zeros(3, int)
    for shard in find_shards(source):
        done = ingest(tables_in(root), shard.key, read_shard(source, shard, root / "cache"), ANYTHING, lambda _: None)
        kept = read_rows(tables_in(root).posts, done.posts_version, shard.key, ["id", "tags", "given"])
        posts |= {row["id"]: row for row in kept.to_pylist()}
        rejects = read_rows(tables_in(root).rejects, done.rejects_version, shard.key, ["id", "reason", "detail"])
        reasons |= {row["id"]: row["reason"] for row in rejects.to_pylist()}
        counts += [done.count.read, done.count.accepted, done.count.rejected]
    return posts, reasons, tuple(counts.tolist())


def described(source):
    return preview(source, find_shards(source))[0]


def table(folder, rows, name="t.csv"):
    """A table of text beside pictures 0.png, 1.png ..."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t" if name.endswith(".tsv") else ",").writerows(rows)
    for n in range(4):
        (folder / f"{n}.png").write_bytes(picture(n))
    return Source(format="folder", uri=str(folder))


# A row for each tag

LABELS = [("0.png", "cat"), ("1.png", "cat"), ("0.png", "pet"), ("2.png", "dog"), ("2.png", "pet"), ("3.png", "dog")]


# Members of a tar


def tar(path, members):
    path.parent.mkdir(exist_ok=True)
    return tar_of(
        path, [(name, data if isinstance(data, bytes) else json.dumps(data).encode()) for name, data in members]
    )


RED, BLUE = picture(1, "JPEG"), picture(2, "JPEG")


# By-products beside the data


def parquet(path, ids, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = [int(name.strip("abcdefghijklmnopqrstuvwxyz") or 0) for name in ids]
    columns = {"id": list(ids), "image": [picture(n) for n in numbers], "tags": [["cat"]] * len(ids)} | more
    pq.write_table(pa.table(columns), path)
    return path


# Class folders


def pictures(folder, *names):
    for n, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(n))


def posts_of(folder, **settings):
    source = Source(format=guess_format(str(folder)), uri=str(folder), **settings)
    return source.format, {row["id"]: (row["tags"], row["split"], row["reason"]) for row in rows_of(source)}
