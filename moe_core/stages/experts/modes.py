"""Modes of the shared decoder: how its weights come about, and what of planning depends on it."""

from dataclasses import dataclass

from moe_core.settings import Study


@dataclass(frozen=True)
class Mode:
    """A value of `decoder.mode`: a mode is added there and in MODES."""

    fit: str  # "module:function" that sets the weights, see shared_decoder.Fit
    settings: tuple[str, ...] = ()  # of [decoder] that change the weights
    reads_posts: bool = False  # weights depend on the training posts, beside trunk and experts
    joint: bool = False  # experts are trained together with it, all of a generation at once
    own_layer: bool = True  # it is another layer than the trunk's


MODES = {
    "frozen": Mode("moe_core.stages.experts.shared_decoder:keep_trunks", own_layer=False),
    "refit": Mode(
        "moe_core.stages.experts.shared_decoder:refit_on_posts",
        settings=("refit_epochs", "refit_lr"),
        reads_posts=True,
    ),
    "joint": Mode("moe_core.stages.experts.shared_decoder:take_generations", joint=True),
}


def mode_of(study: Study) -> Mode:
    """The decoder mode of a study."""
    return MODES[study.decoder.mode]
