"""partition: PCA-whitening and k-means on the trunk's features of the training posts; every post gets one expert."""

from pathlib import Path

from moe_core.engine.context import Context
from moe_core.stages.gate import first_fit, refit
from moe_core.store.artifact import StageOutput


def make(context: Context, key: str | None, folder: Path) -> StageOutput:
    follows = "previous" in context.spec("partition").inputs
    return refit.make(context, folder) if follows else first_fit.make(context, folder)
