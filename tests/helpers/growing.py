"""A study whose source grows: shards of synthetic posts as Parquet files, and all its stages made in this process."""

import polars as pl

from moe_core.data.synthetic import synthetic_posts
from moe_core.engine.build import build
from moe_core.recipes import demo
from moe_core.settings import Data, Network, Partition, Source, Training
from moe_core.stages.graph import GRAPH
from moe_core.study_file import dump_study
from moe_core.workspace import open_study

QUICK = Training(epochs=1, batch_size=32, lr=0.2, flip=False, crop=1)


def add_shard(folder, number, posts=120):
    """The first posts of shard `number` of ten."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = pl.concat([pl.from_arrow(batch) for batch in synthetic_posts(number, 10, 1200, 0)])
    rows.head(posts).write_parquet(folder / f"s{number}.parquet")


def growing_study(folder, experts=3, controls=False, **more):
    values = {
        "name": "growing",
        "source": Source(format="parquet", uri=str(folder)),
        "data": Data(image_size=16, min_posts_per_tag=5, test=0.2, validation=0.1),
        "network": Network(widths=(4, 8), depths=(1, 1), embedding=16),
        "trunk": QUICK,
        "expert_training": QUICK,
        "partition": Partition(experts=experts, pca=8),
        "decoder": demo().decoder.model_copy(update={"mode": "frozen"}),
        "evaluation": demo().evaluation.model_copy(update={"controls": controls, "bootstrap": 20}),
    }
    return demo().model_copy(update=values | more)


def opened(study, root, **more):
    """The study as a new process sees it."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "study.toml").write_text(dump_study(study), "utf-8")
    return open_study(study, root, **more)


def make(study, root, until="mixture"):
    """Makes what is missing, each in a context of its own as in a run; returns the names of what was made."""
    made = []
    for name in GRAPH.usual[: GRAPH.usual.index(until) + 1]:
        if name in opened(study, root).planner.graph:
            keys = opened(study, root).planner.keys(name)
            new = [key for key in keys if not build(opened(study, root), name, key).reused]
            made += [name if key is None else f"{name}:{key}" for key in new]
    return made
