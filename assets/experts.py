from typing import Any

import dagster as dg

from assets.gains import known
from assets.materialize import Work, asset_of, has, materialize
from assets.partition import seen
from moe_core.engine.context import Context
from moe_core.store.artifact import Artifact

if has("joint_experts"):

    @asset_of("joint_experts", group_name="experts", kinds={"pytorch"})
    def joint_experts(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
        """All the experts and their one decoder, trained together: one generation. `expert` is drawn from it."""
        return materialize(context, config)


@asset_of("expert", group_name="experts", kinds={"pytorch"})
def expert(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """One network trained on one cluster alone, against the trunk's decoder held fixed or one trained jointly."""
    return materialize(context, config, _look)


def _look(work: Context, artifact: Artifact) -> tuple[dict[str, Any], list[dg.AssetCheckResult]]:
    return seen(work.need("partition"), str(artifact.key)) | known(work, artifact), []
