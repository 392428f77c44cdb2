"""A store with two mixtures: one that learned something, and one whose networks never moved from their start."""

from helpers.without_controls import quick_study
from moe_core.engine.build import build_all
from moe_core.recipes import demo
from moe_core.settings import Data, Partition, Source, Training
from moe_core.study_file import dump_study
from moe_core.workspace import open_study

CONTROLS_OFF = demo().evaluation.model_copy(update={"controls": False, "bootstrap": 50})


def tiny_study(lr=0.2, **more):
    training = Training(epochs=10, batch_size=32, lr=lr, flip=False, crop=0, checkpoint_seconds=60)
    values = {
        "name": "two",
        "source": Source(format="synthetic", posts=500, shards=2),
        "data": Data(image_size=16, min_posts_per_tag=5, test=0.2, validation=0.2),
        "trunk": training,
        "expert_training": training,
        "partition": Partition(experts=2, pca=4),
        "evaluation": CONTROLS_OFF,
    }
    return quick_study(**values | more)


GOOD, BAD = tiny_study(), tiny_study(lr=1e-9)


def make(context, until):
    """All stages up to and with `until`."""
    names = context.planner.graph.usual
    build_all(context, names[: names.index(until) + 1])


def write(root, study=GOOD):
    root.mkdir(parents=True, exist_ok=True)
    (root / "study.toml").write_text(dump_study(study), "utf-8")


def made(root, until):
    """`root`, with the good one up to and with `until`."""
    write(root)
    make(open_study(GOOD, root), until)
    return root


def two_mixtures(root):
    """`root` holds both, and of the good one evaluation and embeddings; neither is published."""
    write(root)
    for study in (BAD, GOOD):
        make(open_study(study, root), "mixture")
    build_all(open_study(GOOD, root), ("evaluation", "embeddings"))
