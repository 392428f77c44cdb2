"""A small study whose trunk is trained in several processes."""

from moe_core.recipes import demo
from moe_core.settings import Data, Network, Source, Training, TrunkSetup
from moe_core.workspace import open_study

TRUNK = Training(
    epochs=8, batch_size=32, lr=0.1, crop=1, precision="float32", checkpoint_seconds=1e-9, schedule="cosine"
)


def context_of(root, trunk=TRUNK, **setup):
    study = demo().model_copy(
        update={
            "source": Source(format="synthetic", posts=400, shards=1),
            "data": Data(image_size=16, min_posts_per_tag=5, test=0.2, validation=0.1),
            "network": Network(widths=(4, 8), depths=(1, 1), embedding=8),
            "trunk": trunk,
            "trunk_setup": TrunkSetup(**setup),
        }
    )
    return open_study(study, root)
