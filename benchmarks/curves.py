"""Train and test curves of a finished study's networks: who underfits, who overfits.

    python benchmarks/curves.py STUDY.toml [--points 8] [--svg curves.svg]

Trains the trunk again from nothing, then from the study's own trunk the control of the same budget, the experts and the
experts of the random partition, each as the study says, and stops at so many points to measure P@1 without augmentation
on a sample of training posts and on the test posts. Experts answer with the trunk's decoder, each for its own cluster,
and the figure is over all their posts. Prints a table, and writes a plot.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from moe_core.evaluation.metrics import per_post
from moe_core.evaluation.plots import BLUE, GREEN, GREY, ORANGE, Line, lines
from moe_core.models.resnet import ResNet
from moe_core.settings import Training
from moe_core.stages import reading
from moe_core.stages.experts.experts import start, training_posts
from moe_core.stages.trunk.trunk import trunk_start
from moe_core.study_file import load_study
from moe_core.threads import cores
from moe_core.training.infer import features_of, logits_of, probabilities_of
from moe_core.training.loop import steps_of, train
from moe_core.training.posts import Posts
from moe_core.workspace import open_study

SAMPLE = 4000  # training posts that are looked at


def scores(model: ResNet, posts: Posts, training: Training) -> np.ndarray:
    """(N,) P@1 of each post."""
    features_ND = features_of(model, posts.images, training.precision)
    probabilities_NV = probabilities_of(logits_of(features_ND, model.fc), training.loss)
    return per_post(probabilities_NV, posts.tags_T, posts.starts_N1)["p_at_1"]


def curve(
    models: Mapping[str, ResNet],
    posts: Mapping[str, Posts],
    test: Mapping[str, Posts],
    training: Training,
    points: int,
    decoder: bool,
) -> Iterator[tuple[float, float, float]]:
    """(epochs, P@1 on training posts, P@1 on test posts) of the networks together, at each point."""
    seen = {
        k: some.subset(np.arange(len(some))[:: max(1, round(len(some) * len(posts) / SAMPLE))])
        for k, some in posts.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        for point in range(points + 1):
            on_train, on_test = [], []
            for key, model in models.items():
                until = round(steps_of(len(posts[key]), training) * point / points)
                if point:
                    checkpoint = Path(folder) / f"{key}.safetensors"
                    for _ in train(
                        model, posts[key], training, train_decoder=decoder, until=until, checkpoint=checkpoint
                    ):
                        pass
                on_train.append(scores(model, seen[key], training))
                on_test.append(scores(model, test[key], training))
            yield (
                training.epochs * point / points,
                float(np.concatenate(on_train).mean()),
                float(np.concatenate(on_test).mean()),
            )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("study", type=Path)
    arguments.add_argument("--points", type=int, default=8, help="of each curve, after its start")
    arguments.add_argument("--svg", type=Path, default=Path("curves.svg"))
    said = arguments.parse_args()
    study = load_study(said.study)
    context = open_study(study, said.study.absolute().parent)
    torch.set_num_threads(cores())
    index = reading.index(context)
    everything, held_out = (reading.posts_where(context, index, index.use(name)) for name in ("train", "test"))

    def clusters(column: str) -> tuple[dict[str, Posts], dict[str, Posts]]:
        owner_N = reading.assigned(context, column)
        test_N = index.use("test")
        return training_posts(context, column, context.experts, Path(tempfile.gettempdir())), {
            key: reading.posts_where(context, index, test_N & (owner_N == number))
            for number, key in enumerate(context.experts)
        }

    def of_all(model: ResNet) -> tuple[dict[str, ResNet], dict[str, Posts], dict[str, Posts]]:
        return {"all": model}, {"all": everything}, {"all": held_out}

    experts = {key: start(context, key, own_decoder=False) for key in context.experts}
    random_experts = {key: start(context, key, own_decoder=False) for key in context.experts}
    first = study.trunk.epochs
    runs = (
        ("trunk", BLUE, 0.0, of_all(trunk_start(context)[0]), study.trunk, True),
        (
            "same budget",
            GREY,
            first,
            of_all(reading.network(context, context.need("trunk"))),
            study.expert_training,
            True,
        ),
        ("random experts", ORANGE, first, (random_experts, *clusters("random")), study.expert_training, False),
        ("experts", GREEN, first, (experts, *clusters("expert")), study.expert_training, False),
    )
    drawn = []
    print("| network | epochs | P@1, training posts | P@1, test posts | gap |\n| --- | --- | --- | --- | --- |")
    for name, color, before, (models, posts, test), training, decoder in runs:
        found = list(curve(models, posts, test, training, said.points, decoder))
        for epochs, on_train, on_test in found:
            print(
                f"| {name} | {before + epochs:.1f} | {on_train:.4f} | {on_test:.4f} | {on_train - on_test:+.4f} |",
                flush=True,
            )
        shown = found[1:] if name == "trunk" else found  # before its first step it knows nothing
        drawn.append(Line(name, [(before + e, on_test) for e, _, on_test in shown], color))
        drawn.append(Line(name, [(before + e, on_train) for e, on_train, _ in shown], color, width=1.2, opacity=0.45))
    said.svg.write_text(lines(drawn, "epochs", "P@1 (faint: train)"))
    print(f"plot: {said.svg}")


if __name__ == "__main__":
    main()
