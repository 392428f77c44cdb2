"""What Dagster shows of `partition`, and the clusters of its experts, which are assets that nothing executes."""

import json
from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from assets.showing import ROWS, Shown, bar, picture, plot_of_bars, table
from assets.study import OWNERS, experts, key_of, project_keys
from moe_core.engine.context import Context
from moe_core.evaluation.plots import matrix
from moe_core.store.artifact import Artifact

SHARDS_OF_EXPERTS = {
    "expert_shard": (
        "gate",
        "The posts of each expert's cluster. Not executable: `partition` reports one observation an expert, so only "
        "the experts whose cluster changed become stale.",
    ),
    "random_shard": ("controls", "The same of the random partition, which is the control."),
}


def expert_shards() -> list[dg.AssetSpec]:
    """What one expert reads of the partition, as assets that cannot be executed."""
    return [
        dg.AssetSpec(
            key_of(name),
            deps=[key_of("partition")],
            description=description,
            group_name=group,
            partitions_def=experts(),
            owners=OWNERS,
        )
        for name, (group, description) in SHARDS_OF_EXPERTS.items()
    ]


def seen(artifact: Artifact, key: str) -> dict[str, Any]:
    """One expert's cluster, from the partition: its hashtags, and where the contact sheets lie."""
    sheets = {
        f"{name} posts": dg.MetadataValue.path(f"{artifact.uri}/sheets/{key}.{name}.png")
        for name in ("typical", "ambiguous")
        if f"sheets/{key}.{name}.png" in artifact.files
    }
    rows = [(tag, f"{count:,}", times) for tag, count, times in artifact.metadata["hashtags"][key]]
    return {"hashtags that set it apart": table(("hashtag", "posts", "times its share among all posts"), rows)} | sheets


CHURN = ("expert", "posts", "stayed", "came", "left", "new", "gone", "changed", " ")


def churn_rows(changes: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Cells of CHURN for each expert, from what a fit says of its changes."""
    rows = []
    for key, expert in changes["experts"].items():
        counts = [f"{expert[name]:,}" for name in ("now", *CHURN[2:7])]
        rows.append((key, *counts, f"{100 * expert['changed']:.1f} %", "trained again" if expert["again"] else "kept"))
    return rows


def churn(artifact: Artifact) -> dict[str, Any]:
    """What a partition that follows another changed: where training posts went, and which experts are stale."""
    if "churn.json" not in artifact.files:
        return {}
    changes = json.loads(artifact.file("churn.json").read_text("utf-8"))
    found: dict[str, Any] = {"churn": table(CHURN, churn_rows(changes)), "drift": None}
    found |= {f"drift: {name.replace('_', ' ')}": value for name, value in artifact.metadata["drift"].items()}
    if max(len(changes["before"]), len(changes["now"])) <= ROWS:
        about = "training posts, from the experts before (down) to those now"
        found["posts moved"] = picture(
            matrix(changes["posts"], [*changes["before"], "new"], changes["now"], about), about
        )
    return found


def look_partition(work: Context, artifact: Artifact, instance: dg.DagsterInstance) -> Shown:
    members = artifact.metadata["members"]
    sizes = dict(zip(members, artifact.metadata["sizes"], strict=True))
    project_keys(instance, work.study.name, [shard.key for shard in work.shards], list(members))
    for key, of_random in artifact.metadata["random_members"].items():
        instance.report_runless_asset_event(_cluster("random_shard", key, of_random, {}))
    for key, of_expert in members.items():
        about = {"training posts": sizes[key]} | seen(artifact, key)
        instance.report_runless_asset_event(_cluster("expert_shard", key, of_expert, about))
    top = {key: [tag for tag, *_ in found[:5]] for key, found in artifact.metadata["hashtags"].items()}
    largest = max(sizes.values())
    clusters = [(k, f"{n:,}", bar(n, largest), ", ".join(top[k])) for k, n in sizes.items()]
    shown = plot_of_bars(list(sizes.items()), "training posts of each expert") | {
        "clusters": table(("expert", "training posts", " ", "hashtags that set it apart"), clusters),
        "members": None,  # of each expert, with its observation
        "random members": None,
        "contact sheets": dg.MetadataValue.path(f"{artifact.uri}/sheets"),
    }
    return Shown(shown | churn(artifact))


def _cluster(asset: str, key: str, members: str, about: dict[str, Any]) -> dg.AssetObservation:
    """The posts of one expert, by which Dagster tells whether it is stale."""
    metadata = about | {"members": members}
    return dg.AssetObservation(key_of(asset), partition=key, metadata=metadata, tags={DATA_VERSION_TAG: members})
