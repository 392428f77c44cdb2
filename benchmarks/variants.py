"""Mixtures that may pay earlier, on a cell that benchmarks/law.py has made: experts trained in another way, against the
cell's trunk_same_budget and dense_same_cost, and against the same variant under the random partition.

    python benchmarks/variants.py --cell DIR/235000-w8-k16-s0 [--gate trunk|branch|random] [--scale 1.5] [--epochs 4]

--gate branch: a small network on the stage that trunk and experts share learns the clusters and assigns all the posts,
those to train on too; the rest of the trunk is not computed for an answer, nor mixed in. --gate random: the control.
--scale: stages of the experts' own are so many times wider, and begin with what the trunk computes. Answers are by the
trunk's decoder and by one that is refitted, alone and with the router's answer where the trunk was computed anyway.

What is done is kept in DIR/.../variants: the same command goes on there, several processes share the experts, and the
last one prints the table: P@1 in points with paired 95 % intervals, and multiply-adds an image.
"""

import argparse
import fcntl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_core.engine.context import Context
from moe_core.evaluation.answers import Answer
from moe_core.evaluation.metrics import paired_difference, per_post
from moe_core.models.cost import multiply_adds
from moe_core.models.resnet import build, build_on_meta
from moe_core.models.widening import fill_wider
from moe_core.serving.bundle import Bundle
from moe_core.settings import Network, Training
from moe_core.stages import reading
from moe_core.stages.evaluation.predictions import control_predictions, open_control
from moe_core.stages.evaluation.rows import controls_of
from moe_core.stages.experts.shared_decoder import Moved
from moe_core.stages.mixture.calibrate import router_weight
from moe_core.stages.reading import RoutedPosts, read_routed_posts
from moe_core.study_file import load_study
from moe_core.training import loop
from moe_core.training.batches import as_tensor, batches, normalize
from moe_core.training.infer import features_of, mixed
from moe_core.training.last_layer import refit
from moe_core.training.loop import learning_rate, steps_of
from moe_core.training.order import moves_of
from moe_core.training.posts import Images, Posts
from moe_core.weights import load_weights, save_weights
from moe_core.workspace import open_study

RESAMPLES = 2_000
GATE_EPOCHS = 2.0
Routes = dict[str, np.ndarray]  # number of the expert of each post, by split


class BranchGate(nn.Module):
    """From what the shared stages give to the number of an expert: two convolutions that halve the side."""

    def __init__(self, channels: int, experts: int) -> None:
        super().__init__()
        wide, wider = 2 * channels, 4 * channels
        self.body = nn.Sequential(
            nn.Conv2d(channels, wide, 3, 2, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, wider, 3, 2, 1, bias=False),
            nn.BatchNorm2d(wider),
            nn.ReLU(),
        )
        self.fc = nn.Linear(wider, experts)

    def forward(self, start_BCHW: Tensor) -> Tensor:
        """(B, K) logits."""
        return self.fc(self.body(start_BCHW).mean((2, 3)))

    def adds(self, side: int) -> int:
        """Multiply-adds of an image of `side` pixels at the stages that it reads."""
        convolutions = [module for module in self.body if isinstance(module, nn.Conv2d)]
        return sum(conv.weight.numel() * (side >> n + 1) ** 2 for n, conv in enumerate(convolutions))


@dataclass
class Cell:
    """What a variant starts from."""

    context: Context
    train: Posts
    train_N: dict[str, np.ndarray]  # number of the expert by the k-means and the random partition
    validation: RoutedPosts
    test: RoutedPosts

    @property
    def shared(self) -> int:
        return self.context.study.expert.branch_at

    @property
    def precision(self) -> str:
        return self.context.study.expert_training.precision


def open_cell(root: Path) -> Cell:
    context = open_study(load_study(root / "study.toml"), root)
    index = reading.index(context)
    use_N = index.use("train")
    assigned = {column: reading.assigned(context, column)[use_N] for column in ("expert", "random")}
    held_out = (read_routed_posts(context, split) for split in ("validation", "test"))
    return Cell(context, reading.posts_where(context, index, use_N), assigned, *held_out)


def branch_gate(cell: Cell, folder: Path) -> BranchGate:
    """Trained to tell the clusters of the training posts."""
    trunk = reading.network(cell.context, cell.context.need("trunk")).eval()
    experts = len(cell.context.experts)
    gate = BranchGate(cell.context.study.network.widths[cell.shared - 1], experts)
    path = folder / "gate.safetensors"
    if path.exists():
        gate.load_state_dict(load_weights(path)[0])
        return gate.eval()
    training = cell.context.study.trunk.model_copy(update={"epochs": GATE_EPOCHS, "lr": 0.1})
    labels = torch.from_numpy(cell.train_N["expert"]).long()
    posts = Posts(cell.train.images, labels, torch.arange(len(labels) + 1))
    optimizer = torch.optim.SGD(gate.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    steps = steps_of(len(posts), training)
    for batch in batches(posts, training, 0, steps, threads=2):
        with torch.no_grad():
            start_BCHW = trunk.forward_stem(normalize(batch.images_BCHW), cell.shared)
        loss = F.cross_entropy(gate(start_BCHW), batch.tags_BM[:, 0])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate("one-cycle", 0.1, 0.2, batch.step, steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if batch.step % 100 == 0:
            print(f"gate: step {batch.step} of {steps}, cross-entropy {loss.item():.3f}", flush=True)
    save_weights(path, gate.state_dict(), {})
    return gate.eval()


def assigned_by(gate: BranchGate, cell: Cell, images: Images) -> np.ndarray:
    """(N,) the number of the expert of each image."""
    trunk = reading.network(cell.context, cell.context.need("trunk")).eval()
    found = []
    for first in range(0, len(images), 256):
        images_BHWC = images.read(np.arange(first, min(first + 256, len(images))))
        with torch.inference_mode():
            start_BCHW = trunk.forward_stem(normalize(as_tensor(images_BHWC)), cell.shared)
            found.append(gate(start_BCHW).argmax(1).numpy())
    return np.concatenate(found)


def routes(cell: Cell, gate: str, folder: Path) -> Routes:

    if gate != "branch":
        column = {"trunk": "expert", "random": "random"}[gate]
        held_out = {"validation": cell.validation.expert_by(column), "test": cell.test.expert_by(column)}
        return held_out | {"train": cell.train_N[column]}
    path = folder / "routes.npz"
    if not path.exists():
        network = branch_gate(cell, folder)
        some = {"train": cell.train.images, "validation": cell.validation.posts.images, "test": cell.test.posts.images}
        with open(path, "wb") as file:
            np.savez(file, **{split: assigned_by(network, cell, images) for split, images in some.items()})  # type: ignore[arg-type]
    return dict(np.load(path))


def wide_network(cell: Cell, scale: float) -> Network:
    network = cell.context.study.network
    widths = [width if at < cell.shared else round(scale * width) for at, width in enumerate(network.widths)]
    return network.model_copy(update={"widths": tuple(widths)})


def train_expert(cell: Cell, number: int, by: Routes, scale: float, training: Training, to: Path) -> None:
    """Trains one expert and writes its features of its own posts: training posts moved as in training, others not."""
    trunk = reading.network(cell.context, cell.context.need("trunk"))
    network = wide_network(cell, scale)
    model = build(network, trunk.fc.out_features, training.seed + 1 + number)
    fill_wider(trunk.state_dict(), trunk, model, training.seed + 1 + number)
    model.freeze_stages(cell.shared)
    rows = np.flatnonzero(by["train"] == number)
    posts = cell.train.subset(rows)
    for done in loop.train(model, posts, training, train_decoder=False, checkpoint=to.with_suffix(".checkpoint")):
        if done.step % 500 == 0:
            print(f"e{number:03d}: step {done.step} of {done.steps}, {done.images_per_second:.0f} images/s", flush=True)
    moved = Moved(posts.images, moves_of((len(rows),), training, number))
    found = {"train": features_of(model, moved, cell.precision).numpy().astype(np.float16)}
    for split, some in (("validation", cell.validation), ("test", cell.test)):
        images = some.posts.images.subset(np.flatnonzero(by[split] == number))
        found[split] = features_of(model, images, cell.precision).numpy()
    part = to.with_suffix(".part")
    with open(part, "wb") as file:
        np.savez(file, **found)  # type: ignore[arg-type]
    part.rename(to)


def train_all(cell: Cell, by: Routes, scale: float, training: Training, folder: Path) -> bool:
    """Trains the experts that no other process trains; whether all are there now."""
    files = [folder / f"e{number:03d}.npz" for number in range(len(cell.context.experts))]
    for number, file in enumerate(files):
        with open(file.with_suffix(".lock"), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if not file.exists():
                train_expert(cell, number, by, scale, training, file)
    return all(file.exists() for file in files)


def gathered(folder: Path, by: Routes, split: str, width: int) -> Tensor:
    """(N, D): the features of all the posts of a split, each by its own expert."""
    out_ND = torch.zeros(len(by[split]), width)
    for number in range(int(by["train"].max()) + 1):
        out_ND[by[split] == number] = torch.from_numpy(np.load(folder / f"e{number:03d}.npz")[split]).float()
    return out_ND


def answers(
    cell: Cell, gate: str, features: Mapping[str, Tensor], decoder: nn.Linear
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, whether the first hashtag of each test post is right) of each way to answer."""
    study, trunk = cell.context.study, reading.last_layer(cell.context.need("trunk"))
    refitted = nn.Linear(decoder.in_features, decoder.out_features)
    refitted.load_state_dict(decoder.state_dict())
    how = study.decoder.refit_epochs, study.decoder.refit_lr, study.expert_training.loss, study.expert_training.seed
    refit(refitted, features["train"], cell.train, *how)
    loss = study.expert_training.loss
    routers = {
        split: Answer(torch.from_numpy(some.features_ND), [trunk])
        for split, some in (("validation", cell.validation), ("test", cell.test))
    }
    for name, layer in (("decoder as it is", decoder), ("refitted", refitted)):
        weights = {"": 0.0}
        if gate != "branch":
            own = Answer(features["validation"], [layer])
            best = router_weight("validation", own, routers["validation"], cell.validation.posts, loss, "cpu")
            weights[f" and router {best}"] = best
        for more, weight in weights.items():
            own = Answer(features["test"], [layer])
            right_N = np.zeros(len(cell.test))
            for rows_B in own.parts():
                p_BV = mixed(own.logits(rows_B, "cpu"), routers["test"].logits(rows_B, "cpu"), weight, loss)
                right_N[rows_B] = per_post(p_BV, *cell.test.posts.tag_rows(rows_B))["p_at_1"]
            yield name + more, right_N


def controls(cell: Cell) -> dict[str, np.ndarray]:
    """Whether the first hashtag of each test post is right, by the cell's own rows."""
    bundle, networks = Bundle(cell.context.need("mixture")), controls_of(cell.context.planner.graph)
    found: dict[str, np.ndarray] = {}
    for row in ("trunk_same_budget", "dense_same_cost"):
        control = open_control(cell.context, bundle, networks[row], cell.validation, "cpu")
        found[row] = np.zeros(len(cell.test))
        for name, rows_B, p_BV in control_predictions(cell.context, bundle, row, control, cell.test, "cpu"):
            found[name][rows_B] = per_post(p_BV, *cell.test.posts.tag_rows(rows_B))["p_at_1"]
    return found


def shown(right_N: np.ndarray, known: Mapping[str, np.ndarray]) -> str:
    """P@1 in points, and less each control."""
    found = [f"{100 * right_N.mean():.2f}"]
    for row, control_N in known.items():
        pair = paired_difference(right_N, control_N, RESAMPLES, 0)
        found.append(f"less {row} {100 * pair.mean:+.2f} ({100 * pair.low:+.2f} to {100 * pair.high:+.2f})")
    return "; ".join(found)


def adds_of(cell: Cell, gate: str, scale: float, whole: bool = False) -> int:
    """Multiply-adds of an answer; `whole`: experts share no stages with the trunk."""
    study, hashtags = cell.context.study, len(reading.vocabulary(cell.context).hashtags)
    trunk, expert = build_on_meta(study.network, hashtags), build_on_meta(wide_network(cell, scale), hashtags)
    size = study.data.image_size
    own = multiply_adds(expert, size, after=0 if whole else cell.shared)
    if gate != "branch":
        return multiply_adds(trunk, size) + own
    shared = multiply_adds(trunk, size) - multiply_adds(trunk, size, after=cell.shared)
    side = size >> cell.shared - 1 if study.network.stem == "small" else size >> cell.shared + 1
    return shared + BranchGate(study.network.widths[cell.shared - 1], len(cell.context.experts)).adds(side) + own


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cell", type=Path, required=True)
    options.add_argument("--gate", choices=("trunk", "branch", "random"), default="trunk")
    options.add_argument("--scale", type=float, default=1.0)
    options.add_argument("--epochs", type=float, help="of the experts; without it the cell's")
    args = options.parse_args()
    torch.set_num_threads(1)
    cell = open_cell(args.cell)
    training = cell.context.study.expert_training
    training = training.model_copy(update={"epochs": args.epochs or training.epochs})
    gate_folder = args.cell / "variants" / args.gate
    folder = args.cell / "variants" / f"{args.gate}-{args.scale:g}-{training.epochs:g}"
    for one in (gate_folder, folder):
        one.mkdir(parents=True, exist_ok=True)
    by = routes(cell, args.gate, gate_folder)
    if args.gate == "branch":
        agree = float((by["test"] == cell.test.expert_N).mean())
        print(f"agrees with the gate on the trunk for {agree:.3f} of the test posts; {np.bincount(by['train'])} posts")
    if not train_all(cell, by, args.scale, training, folder):
        return print("another process trains the others")
    known = controls(cell)
    print(f"multiply-adds an image: {adds_of(cell, args.gate, args.scale):,}")
    decoder = reading.last_layer(cell.context.need("trunk"))
    features = {split: gathered(folder, by, split, decoder.in_features) for split in by}
    for name, right_N in answers(cell, args.gate, features, decoder):
        np.save(folder / f"{name.replace(' ', '-')}.npy", right_N)
        print(f"{args.gate} x{args.scale:g}, {name}: {shown(right_N, known)}")


if __name__ == "__main__":
    main()
