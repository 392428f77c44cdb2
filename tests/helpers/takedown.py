"""A source of two users' posts, the study of it, and what of it lies on the disk."""

import io

import numpy as np
import polars as pl
from PIL import Image

from helpers.without_controls import quick_study
from moe_core.engine.build import build
from moe_core.settings import Data, Source
from moe_core.store.artifact import Spec, StageOutput
from moe_core.study_file import dump_study
from moe_core.tables.vectors import write_vectors
from moe_core.workspace import open_study

SIZE = 16
GONE = "post-of-ann-000"  # ann's posts: 0 to 3 of shard a, 0 of shard b, and one that is rejected


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pixels_on_disk(seed):
    return noise(seed).tobytes()


def write_source(folder, posts=120, first=0):
    folder.mkdir(exist_ok=True)
    for shard, number in (("a", 0), ("b", 1)):
        rows = []
        for n in range(posts):
            ann = n < 4 if shard == "a" else n == 0
            name = f"post-of-{'ann' if ann else 'bob'}-{number * posts + n:03d}"
            image = png(noise(number * posts + n)) if (shard, n) != ("a", 3) else b"broken image"
            split = "train" if n % 10 else "test"
            split = "validation" if n % 10 == 5 else split
            split = "train" if n < 4 else split
            tags = [["cat", "dog", "cow"][n % 3]]
            user = "user-ann" if ann else f"user-{n}"
            rows.append({"id": name, "image": image, "tags": tags, "user": user, "split": split})
        pl.DataFrame(rows).write_parquet(folder / f"{shard}.parquet")
    return Source(format="parquet", uri=str(folder))


def study_of_two_users(source, **more):
    data = Data(image_size=SIZE, min_posts_per_tag=1, validation=0.0, max_reject_rate=1)
    return quick_study(**{"name": "takedown", "source": source, "data": data} | more)


def files_with(root, text):
    """Every file on the disk that holds the bytes."""
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and text in p.read_bytes())


def two_shards(folder, posts=120, **more):
    """Posts of two shards, an artifact of features of each, an older artifact of shard b, a log that names a post."""
    study = study_of_two_users(write_source(folder / "source", posts), **more)
    context = open_study(study, folder / "store")
    context.root.mkdir()
    build(smaller(context), "posts", "b")
    for key in ("a", "b"):
        build(context, "posts", key)
        write_features(context, key)
    (context.root / "logs").mkdir()
    (context.root / "logs" / "posts.a.log").write_text(f"for example {GONE}: no_tags")
    (context.root / "study.toml").write_text(dump_study(context.study))
    return context


def blobs_with(place, text):
    """Every blob that holds the bytes."""
    return [entry.name for entry in place.names() if text in place.read(entry.name)]


def write_features(context, key):
    import pyarrow as pa

    names = pl.read_parquet(f"{context.study.source.uri}/{key}.parquet")["id"]

    def write(folder):
        parts = [({"id": pa.array(names.to_list())}, np.eye(len(names)))]
        write_vectors(folder / "features.lance", {"id": pa.string()}, "feature", len(names), parts)
        return StageOutput({})

    context.store.make(Spec("trunk_features", key, "1", {}, {"posts": context.version("posts", key)}), write)


def reopen(context):
    return open_study(context.study, context.root)


def smaller(context):
    return open_study(context.study.model_copy(update={"data": Data(image_size=8, max_reject_rate=1)}), context.root)
