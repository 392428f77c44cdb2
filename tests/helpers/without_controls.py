"""A small study without controls, whose whole graph takes seconds."""

from moe_core.recipes import demo
from moe_core.settings import Data, Network, Partition, Source, Training, load_study
from moe_core.workspace import open_study

QUICK = Training(epochs=1, batch_size=32, lr=0.2, flip=False, crop=1)


def small_study(**more):
    values = {
        "name": "tiny",
        "source": Source(format="synthetic", posts=400, shards=1),
        "data": Data(image_size=16, min_posts_per_tag=5, test=0.2, validation=0.1),
        "network": Network(widths=(4, 8), depths=(1, 1), embedding=16),
        "trunk": QUICK,
        "expert_training": QUICK,
        "partition": Partition(experts=2, pca=8),
        "evaluation": demo().evaluation.model_copy(update={"controls": False, "bootstrap": 20}),
    }
    return demo().model_copy(update=values | more)


def opened(file):
    return open_study(load_study(file), file.parent)
