import dagster as dg

from assets.gains import known
from assets.materialize import Shown, Work, asset_of, materialize
from assets.partition import seen
from moe_core.engine.context import Context
from moe_core.store.artifact import Artifact


@asset_of("joint_experts", group_name="experts", kinds={"pytorch"})
def joint_experts(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """All the experts and their one decoder, trained together: one generation. `expert` is drawn from it."""
    return materialize(context, config)


def _look(work: Context, artifact: Artifact, instance: dg.DagsterInstance) -> Shown:
    return Shown(seen(work.need("partition"), str(artifact.key)) | known(work, artifact))


@asset_of("expert", _look, group_name="experts", kinds={"pytorch"})
def expert(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """One network trained on one cluster alone, against the trunk's decoder held fixed or one trained jointly."""
    return materialize(context, config)
