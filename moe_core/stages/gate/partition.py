"""partition: PCA-whitening and k-means on the trunk's features of the training posts; every post gets one expert."""

from pathlib import Path

from moe_core.engine.context import Context
from moe_core.stages.gate import first_fit, refit
from moe_core.store.artifact import Spec, StageOutput


def make(context: Context, spec: Spec, folder: Path) -> StageOutput:
    return (refit if "previous" in spec.inputs else first_fit).make(context, spec, folder)
