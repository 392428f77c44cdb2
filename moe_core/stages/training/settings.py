"""The part of a training's settings that changes its result."""

from typing import Any

from moe_core.settings import Study

NOT_COUNTED = {"checkpoint_seconds", "device_mib"}  # how often it can be resumed, where its images lie


def training_settings(study: Study, table: str) -> Any:
    """Settings of `[trunk]` or `[expert_training]` that change the weights."""
    return getattr(study, table).model_dump(exclude=NOT_COUNTED)
