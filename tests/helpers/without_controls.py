"""A small study without controls, whose whole graph takes seconds."""

from helpers.with_controls import small_study
from moe_core.recipes import demo
from moe_core.settings import Source, Training
from moe_core.study_file import load_study
from moe_core.workspace import open_study

QUICK = Training(epochs=1, batch_size=32, lr=0.2, flip=False, crop=1)


def quick_study(**more):
    values = {
        "source": Source(format="synthetic", posts=400, shards=1),
        "trunk": QUICK,
        "expert_training": QUICK,
        "evaluation": demo().evaluation.model_copy(update={"controls": False, "bootstrap": 20}),
    }
    return small_study(**values | more)


def opened(file):
    return open_study(load_study(file), file.parent)
