"""What the stages of the data depend on: posts, their splits, and the vocabulary of hashtags."""

from pathlib import Path
from typing import Any

from moe_core.engine.planner import Planner
from moe_core.engine.stage import Ref, Stage
from moe_core.settings import Study
from moe_core.store.artifact import Artifact
from moe_core.store.hashing import file_hash


def _posts_inputs(planner: Planner, key: str | None) -> dict[str, str]:
    assert key is not None
    taken_down = planner.state.takedowns.hash_of(key)
    inputs = {"shard": planner.state.by_key[key].content_hash}
    return inputs | ({"takedowns": taken_down} if taken_down else {})


def _ids_of_splits(artifact: Artifact) -> list[str]:
    import polars as pl

    return pl.read_parquet(artifact.file("splits.parquet"), columns=["id"], glob=False)["id"].to_list()


def _vocabulary_settings(study: Study) -> Any:
    """The files of stop tags and synonyms count by their content."""
    settings = study.data.settings_of("vocabulary")
    for name in ("stop_tags", "synonyms"):
        path = Path(getattr(study.data, name) or ".")
        settings[name] = file_hash(path) if path.is_file() else ""
    return settings


POSTS = Stage(
    name="posts",
    keys="shards",
    code="2",
    reads=(),
    settings=lambda study: study.data.settings_of("posts"),
    inputs=_posts_inputs,
    make="moe_core.stages.data.posts:make",
    description="One shard of the source: accepted posts in posts.lance, rejected ones with a reason in rejects.lance.",
    uses_gpu=False,
    post_ids=lambda artifact: (),  # its manifest numbers rows; the tables, which have the posts, are searched apart
)

SPLITS = Stage(
    name="splits",
    code="2",
    reads=("posts",),
    settings=lambda study: study.data.settings_of("splits"),
    inputs=lambda planner, key: {"posts": planner.posts_snapshot},
    make="moe_core.stages.data.splits:make",
    description="The split of every post, with near-duplicates of all shards on one side; leaks of given splits by "
    "name.",
    uses_gpu=False,
    post_ids=_ids_of_splits,
)

VOCABULARY = Stage(
    name="vocabulary",
    code="2",
    reads=("posts", "splits"),
    settings=_vocabulary_settings,
    inputs=lambda planner, key: {"splits": Ref("splits")},
    make="moe_core.stages.data.vocabulary:make",
    description="The hashtags that are predicted, by number of posts and of distinct users; what was dropped, and why.",
    uses_gpu=False,
    frozen=True,
    post_ids="unknown",  # tags that one user alone wrote
)
