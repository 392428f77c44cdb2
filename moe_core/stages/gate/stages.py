"""What the gate depends on: one partition of all the posts, and the partition that it continues."""

from moe_core.engine.planner import Planner
from moe_core.engine.stage import Ref, Stage
from moe_core.stages.gate import assignment, current_partition
from moe_core.store.artifact import Artifact


def _inputs(planner: Planner, key: str | None) -> dict[str, Ref]:
    """With the splits where the trunk, which the features name, was trained on others."""
    inputs = {f"features {shard.key}": Ref("trunk_features", shard.key) for shard in planner.state.shards}
    return inputs | ({"splits": Ref("splits")} if planner.frozen else {})


def _ids(artifact: Artifact) -> list[str]:
    import polars as pl

    found = {post_id for rows in assignment.batches(artifact, ["id"]) for post_id in rows["id"].to_list()}
    if "trained.parquet" in artifact.files:
        found |= set(pl.read_parquet(artifact.file("trained.parquet"), columns=["id"], glob=False)["id"].to_list())
    return sorted(found)


PARTITION = Stage(
    name="partition",
    code="4",
    reads=("trunk_features", "vocabulary", "posts"),
    settings=lambda study: {"partition": study.partition.model_dump()},
    inputs=_inputs,
    make="moe_core.stages.gate.partition:make",
    description="The gate: PCA-whitening and k-means on the trunk's features; each post belongs to exactly one expert.",
    resolve=current_partition.resolve,
    on_commit=current_partition.on_commit,
    post_ids=_ids,
)
