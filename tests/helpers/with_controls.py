"""A small study with all controls: two experts on 1500 synthetic posts."""

from moe_core.recipes import demo
from moe_core.settings import Data, Network, Partition, Source, Training

QUICK = Training(epochs=1, batch_size=32, lr=0.2, flip=False, crop=1, checkpoint_seconds=0.2)


def small_study(**more):
    values = {
        "name": "tiny",
        "source": Source(format="synthetic", posts=1500, shards=2),
        "data": Data(image_size=16, min_posts_per_tag=5, test=0.2, validation=0.1),
        "network": Network(widths=(4, 8), depths=(1, 1), embedding=16),
        "trunk": QUICK,
        "expert_training": QUICK,
        "partition": Partition(experts=2, pca=8),
    }
    return demo().model_copy(update=values | more)
