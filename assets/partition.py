from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from assets.materialise import OWNERS, Work, asset_of, cell, materialise
from assets.study import EXPERTS
from moe_core.stages.context import Context
from moe_core.store import Artefact

expert_shard = dg.AssetSpec(
    "expert_shard",
    description="The posts of each expert's cluster. Not executable: `partition` reports one observation an expert, "
    "so only the experts whose cluster changed become stale.",
    deps=["partition"],
    group_name="gate",
    partitions_def=EXPERTS,
    owners=OWNERS,
)


@asset_of("partition", group_name="gate", kinds={"faiss"})
def partition(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """The gate: PCA-whitening and k-means on the trunk's features; each post belongs to exactly one expert."""

    def look(_: Context, artefact: Artefact) -> tuple[dict[str, Any], list[dg.AssetCheckResult]]:
        members, sizes = artefact.metadata["members"], artefact.metadata["sizes"]
        context.instance.add_dynamic_partitions(EXPERTS.name or "", list(members))
        for (key, digest), size in zip(members.items(), sizes, strict=True):
            context.instance.report_runless_asset_event(
                dg.AssetObservation(
                    "expert_shard", partition=key, metadata={"training posts": size}, tags={DATA_VERSION_TAG: digest}
                )
            )
        rows = "\n".join(f"| {cell(key)} | {size} |" for key, size in zip(members, sizes, strict=True))
        return {"clusters": dg.MetadataValue.md("| expert | training posts |\n| --- | --- |\n" + rows)}, []

    return materialise(context, config, look)
