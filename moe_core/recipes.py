"""Recipes: named settings that are known to work; docs/explanation/results.md has cost and score where measured.

`demo` is for the synthetic data; the others take any source (`hardmoe init DIR --source ... --recipe NAME`).
"""

from collections.abc import Callable

from moe_core.settings import Data, Decoder, Evaluation, Expert, Network, Partition, Source, Study, Training


def demo() -> Study:
    """20,000 synthetic posts, eight experts and all controls: at most three minutes on two cores."""
    # The shapes are not the same when mirrored, hence no flips. Experts see few posts each: small batches give
    # them steps enough.
    training = Training(epochs=9, batch_size=64, lr=0.4, flip=False, crop=1)
    return Study(
        name="demo",
        recipe="demo",
        source=Source(format="synthetic", posts=20_000, shards=4),
        data=Data(image_size=16),
        network=Network(widths=(8, 8, 8), depths=(1, 1, 1), embedding=48),
        trunk=training,
        expert_training=training.model_copy(update={"epochs": 3.0, "batch_size": 32, "lr": 0.3}),
        partition=Partition(experts=8),
        decoder=Decoder(mode="refit", refit_epochs=4, refit_lr=1.0),
    )


def small() -> Study:
    """A tiny ResNet (w=8) and eight experts, 22+8 epochs at 32x32: 13 minutes on two cores for 40,000 photographs.

    Without dense_same_cost, which takes about as long as the trunk on one core. P@1 0.460 and R@5 0.391 on Tiny
    ImageNet with half of the router's probabilities mixed in, as it was then (docs/history/experiments.md).
    """
    # Of 30 epochs in all the trunk gets most: the experts see few posts each and overfit beyond some eight.
    return Study(
        name="small",
        recipe="small",
        source=Source(format="parquet"),
        data=Data(image_size=32, validation=0.02),
        network=Network(widths=(8, 16, 32), depths=(1, 1, 1), embedding=128),
        trunk=Training(epochs=22, lr=0.2),
        expert_training=Training(epochs=8, batch_size=64, lr=0.1),
        partition=Partition(experts=8),
        expert=Expert(branch_at=1),
        decoder=Decoder(mode="refit", refit_epochs=6, refit_lr=0.2),
    )


def small_long() -> Study:
    """`small` with 40+30 epochs: the trunk is saturated, the experts still gain. Cost and score not measured."""
    return small().changed(
        name="small_long", recipe="small_long", trunk={"epochs": 40.0}, expert_training={"epochs": 30.0}
    )


def small_wide() -> Study:
    """Twice as wide, four experts, 10+6 epochs. Cost and score not measured."""
    return small().changed(
        name="small_wide",
        recipe="small_wide",
        network={"widths": (16, 32, 64)},
        trunk={"epochs": 10.0},
        expert_training={"epochs": 6.0},
        partition={"experts": 4},
        evaluation={"topk": 4},
    )


def resnet18_k16() -> Study:
    """ResNet-18 at 224x224, sixteen experts: for GPUs. Score not measured; 1.8 G multiply-adds an image and network."""
    training = Training(epochs=30, batch_size=256, lr=0.1, weight_decay=1e-4, crop=16, schedule="cosine")
    return Study(
        name="resnet18_k16",
        recipe="resnet18_k16",
        source=Source(format="parquet"),
        data=Data(image_size=224, validation=0.01),
        network=Network(stem="imagenet", widths=(64, 128, 256, 512), depths=(2, 2, 2, 2), embedding=0),
        trunk=training,
        expert_training=training.model_copy(update={"lr": 0.05}),
        partition=Partition(experts=16, pca=256, fine=256),
        expert=Expert(start="branch"),
        evaluation=Evaluation(topk=4),
    )


def resnet50_k32() -> Study:
    """ResNet-50 at 224x224, 32 experts: for GPUs. Score not measured; 4.1 G multiply-adds an image and network."""
    return resnet18_k16().changed(
        name="resnet50_k32",
        recipe="resnet50_k32",
        network={"block": "bottleneck", "depths": (3, 4, 6, 3)},
        partition={"experts": 32, "fine": 1024},
    )


def quick(base: Study) -> Study:
    """A recipe for a first look: without controls, a quarter of the trunk's epochs and a third of the experts'.

    Whether the mixture is better than another use of the same training cannot be told without controls.
    """
    return base.changed(
        trunk={"epochs": max(1.0, round(base.trunk.epochs / 4))},
        expert_training={"epochs": max(1.0, round(base.expert_training.epochs / 3))},
        evaluation={"controls": False},
    )


RECIPES: dict[str, Callable[[], Study]] = {
    recipe.__name__: recipe for recipe in (demo, small, small_long, small_wide, resnet18_k16, resnet50_k32)
}
