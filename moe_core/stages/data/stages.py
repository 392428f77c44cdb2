"""What the stages of the data depend on: posts, their splits, and the vocabulary of hashtags."""

from pathlib import Path
from typing import Any

from moe_core.engine.planner import Planner
from moe_core.engine.stage import Ref, Stage
from moe_core.errors import BadSetting
from moe_core.store.artifact import Artifact
from moe_core.store.hashing import file_hash

FILES_OF_WORDS = ("stop_tags", "synonyms")


def _posts_inputs(planner: Planner, key: str | None) -> dict[str, str]:
    assert key is not None
    taken_down = planner.state.takedowns.hash_of(key)
    inputs = {"shard": planner.state.by_key[key].content_hash}
    return inputs | ({"takedowns": taken_down} if taken_down else {})


def _ids_of_splits(artifact: Artifact) -> list[str]:
    import polars as pl

    return pl.read_parquet(artifact.file("splits.parquet"), columns=["id"], glob=False)["id"].to_list()


def _vocabulary_inputs(planner: Planner, key: str | None) -> dict[str, Any]:
    """The user's files of words count by their content."""
    data = planner.state.study.data
    files = {name: path for name in FILES_OF_WORDS if (path := getattr(data, name))}
    words = {name: hash_of_named(f"data.{name}", path, "a text file") for name, path in files.items()}
    return {"splits": Ref("splits")} | words


def hash_of_named(setting: str, path: str, wanted: str) -> str:
    """Hash of the file that a setting names. Raises BadSetting where it is not there."""
    if not Path(path).is_file():
        raise BadSetting(f"{setting}: no file {path}: wanted {wanted}")
    return file_hash(Path(path))


POSTS = Stage(
    name="posts",
    keys="shards",
    code="2",
    reads=(),
    settings=lambda study: {"data": study.data.settings_of("posts")},
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
    settings=lambda study: {"data": study.data.settings_of("splits")},
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
    settings=lambda study: {"data": study.data.settings_of("vocabulary", without=FILES_OF_WORDS)},
    inputs=_vocabulary_inputs,
    make="moe_core.stages.data.vocabulary:make",
    description="The hashtags that are predicted, by number of posts and of distinct users; what was dropped, and why.",
    uses_gpu=False,
    frozen=True,
    post_ids="unknown",  # tags that one user alone wrote
)
