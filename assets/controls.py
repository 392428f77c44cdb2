"""Assets of the stages that train networks only to compare with: all alike, so that a new control needs none here."""

import dagster as dg

from assets.materialize import StageAsset, Work, asset_of, materialize
from moe_core.engine.stage import Stage
from moe_core.stages.graph import GRAPH


def control_asset(stage: Stage) -> StageAsset:
    """The asset of a control; its description is the stage's."""

    @asset_of(stage.name, group_name="controls", kinds={"pytorch"}, description=f"Control: {stage.control}.")
    def control(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
        return materialize(context, config)

    return control


CONTROLS = [control_asset(stage) for stage in GRAPH.values() if stage.control]
