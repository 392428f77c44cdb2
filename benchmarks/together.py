"""Experts that share filters and go on training them together, or learn from all the experts of the cell as well, on a
cell that benchmarks/law.py has made; measured as in benchmarks/variants.py, which trains the same experts apart.

    python benchmarks/together.py --cell DIR/235000-w8-k16-s0-early --share none|early|delta
        [--gate trunk|branch|random] [--scale 1.5] [--teacher 0.5]

--share none: stages after the branch are an expert's own; what comes before them and the decoder stay the trunk's.
--share early: the stem, the first stages and the decoder are one for all and learn from every post; later stages are
an expert's own. --share delta: every filter is a shared one plus the expert's own difference from it, which decays
(--decay). --scale: stages of an expert's own are so many times wider. --teacher: so much of the loss is the divergence
from what the cell's finished experts say together, weighted as in mixture_topk, with the router's answer mixed in, at
temperature 2 (Hinton, Vinyals, Dean 2015); with --gate random the cell's random experts, weighted alike. Statistics of
batch norm are an expert's own. One process trains all: each step is a batch of one expert's posts, experts in a drawn
order, as if outer steps were as frequent as inner ones: the most that exchange can bring.

Where stages go on training together they are no longer the trunk's: an answer costs the trunk and a whole expert.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from variants import Cell, Routes, adds_of, answers, controls, gathered, open_cell, routes, shown, wide_network

from moe_core.evaluation.answers import PART_BYTES
from moe_core.models.resnet import build, shared_layer_names
from moe_core.models.widening import fill_wider
from moe_core.serving.bundle import Bundle
from moe_core.settings import Training
from moe_core.stages import reading
from moe_core.stages.experts.shared_decoder import Moved
from moe_core.training.batches import batches, normalize
from moe_core.training.infer import features_of, logits_of, mixed
from moe_core.training.loop import learning_rate, steps_of
from moe_core.training.losses import hashtag_loss
from moe_core.training.order import moves_of
from moe_core.training.posts import Posts
from moe_core.weights import load_weights

TEMPERATURE = 2.0  # of the teacher
Weights = dict[str, Tensor]


def sgd(weights: dict[str, nn.Parameter], decay: float) -> torch.optim.SGD:
    return torch.optim.SGD(weights.values(), lr=0.0, momentum=0.9, nesterov=True, weight_decay=decay)


class Filters:
    """Weights of all experts: shared ones, an expert's own, and where both are, their sum."""

    def __init__(self, cell: Cell, share: str, scale: float, training: Training, decay: float) -> None:
        trunk = reading.network(cell.context, cell.context.need("trunk"))
        self.model = build(wide_network(cell, scale), trunk.fc.out_features, training.seed)
        self.frozen = cell.shared if share == "none" else 0
        early, both = (*shared_layer_names(cell.shared), "fc"), share == "delta"
        self.shared: dict[str, nn.Parameter] = {}
        self.own: list[dict[str, nn.Parameter]] = []
        self.statistics = []
        for number in range(len(cell.context.experts)):
            fill_wider(trunk.state_dict(), trunk, self.model, training.seed + 1 + number)
            start = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
            shared = {name for name in start if both or name.split(".")[0] in early}
            own = {name for name in start if (both and not name.startswith("fc.")) or name not in shared}
            self.shared = {name: nn.Parameter(start[name], share != "none") for name in sorted(shared)}
            self.own.append({n: nn.Parameter(torch.zeros_like(start[n]) if both else start[n]) for n in sorted(own)})
            self.statistics.append({name: buffer.clone() for name, buffer in self.model.named_buffers()})
        self.optimizers = [sgd(own, decay if both else training.weight_decay) for own in self.own]
        self.shared_optimizer = sgd(self.shared, training.weight_decay)

    def train(self) -> None:
        self.model.train()
        if self.frozen:
            self.model.freeze_stages(self.frozen)

    def of(self, expert: int) -> Weights:
        own = self.own[expert]
        merged: Weights = {name: weight + own[name] if name in own else weight for name, weight in self.shared.items()}
        return own | merged | self.statistics[expert]

    def logits(self, expert: int, images_BCHW: Tensor, bfloat16: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits_BV: Tensor = functional_call(self.model, self.of(expert), (normalize(images_BCHW),))
        return logits_BV

    def step(self, expert: int, loss: Tensor, lr: float) -> None:
        optimizers = self.shared_optimizer, self.optimizers[expert]
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = lr
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()


def teacher_of(cell: Cell, gate: str, path: Path) -> np.ndarray:
    """(N, V) float16: logits of all the cell's finished experts together for each training post."""
    if path.exists():
        return np.load(path, mmap_mode="r")
    context, images = cell.context, cell.train.images
    index = reading.index(context)
    trunk_ND = reading.trunk_features_where(context, index.use("train"))
    bundle, experts = Bundle(context.need("mixture")), context.experts
    weight_NK = np.full((len(images), len(experts)), 1 / len(experts), np.float32)
    if gate == "trunk":
        weight_NK = bundle.gate.weights(trunk_ND, context.study.evaluation.topk, bundle.temperature)
    name = {"trunk": "expert", "random": "random_expert"}[gate]
    decoder = reading.last_layer(context.need("trunk"))
    fitted = context.need({"trunk": "shared_decoder", "random": "random_decoder"}[gate])
    decoder.load_state_dict(load_weights(fitted.file("decoder.safetensors"))[0])
    p_NV = np.zeros((len(images), decoder.out_features), np.float16)
    rows = max(1, PART_BYTES // (4 * decoder.out_features))
    for number, key in enumerate(experts):
        features_ND = features_of(reading.network(context, context.need(name, key)), images, cell.precision)
        for first in range(0, len(images), rows):
            some = slice(first, first + rows)
            p_NV[some] += weight_NK[some, number, None] * logits_of(features_ND[some], decoder).softmax(1).numpy()
        print(f"teacher: {key}", flush=True)
    for first in range(0, len(images), rows):
        some = slice(first, first + rows)
        log_BV = torch.from_numpy(p_NV[some]).float().clamp(min=1e-7).log()
        router_BV = logits_of(torch.from_numpy(trunk_ND[some]), reading.last_layer(context.need("trunk")))
        p_BV = mixed(log_BV, router_BV.log_softmax(1), bundle.router_weight, "softmax")
        p_NV[some] = p_BV.clamp(min=1e-7).log().numpy()
    np.save(path, p_NV)
    return p_NV


def divergence(logits_BV: Tensor, teacher_BV: Tensor) -> Tensor:
    """Of two softmaxes at TEMPERATURE, times its square so that gradients are as large as at one."""
    said_BV, wanted_BV = (F.log_softmax(one_BV / TEMPERATURE, 1) for one_BV in (logits_BV.float(), teacher_BV))
    return TEMPERATURE**2 * F.kl_div(said_BV, wanted_BV, reduction="batchmean", log_target=True)


def with_places(posts: Posts, rows: np.ndarray) -> Posts:
    """Some of the posts; the first number of each among its tags is its place."""
    tags_T, starts_N1 = posts.tag_rows(rows)
    at = starts_N1[:-1].numpy()
    return Posts(
        posts.images.subset(rows),
        torch.from_numpy(np.insert(tags_T.numpy(), at, rows)),
        starts_N1 + torch.arange(len(starts_N1)),
    )


def train(cell: Cell, by: Routes, filters: Filters, training: Training, teacher: float, taught_NV: np.ndarray) -> None:
    experts = len(cell.context.experts)
    posts = [with_places(cell.train, np.flatnonzero(by["train"] == number)) for number in range(experts)]
    steps = [steps_of(len(its), training) for its in posts]
    order = np.random.default_rng(training.seed).permutation(np.repeat(np.arange(experts), steps))
    streams = [batches(its, training, 0, count) for its, count in zip(posts, steps, strict=True)]
    filters.train()
    losses = []
    for done, number in enumerate(order):
        batch = next(streams[number])
        lr = learning_rate(training.schedule, training.lr, training.warmup, done, len(order))
        logits_BV = filters.logits(number, batch.images_BCHW, training.precision != "float32")
        loss = hashtag_loss(logits_BV, batch.tags_BM[:, 1:], training.loss)
        if teacher:
            wanted_BV = torch.from_numpy(taught_NV[batch.tags_BM[:, 0].numpy()]).float()
            loss = (1 - teacher) * loss + teacher * divergence(logits_BV, wanted_BV)
        filters.step(number, loss, lr)
        losses.append(loss.item())
        if done % 1000 == 999:
            print(f"step {done + 1} of {len(order)}, loss {np.mean(losses[-1000:]):.3f}", flush=True)


def write(cell: Cell, by: Routes, filters: Filters, training: Training, folder: Path) -> None:
    """Features of each expert's posts, as variants.py has them, and the decoder."""
    for number in range(len(cell.context.experts)):
        filters.model.load_state_dict({name: weight.detach() for name, weight in filters.of(number).items()})
        filters.model.eval()
        rows = np.flatnonzero(by["train"] == number)
        moved = Moved(cell.train.images.subset(rows), moves_of((len(rows),), training, number))
        found = {"train": features_of(filters.model, moved, cell.precision).numpy().astype(np.float16)}
        for split, some in (("validation", cell.validation), ("test", cell.test)):
            images = some.posts.images.subset(np.flatnonzero(by[split] == number))
            found[split] = features_of(filters.model, images, cell.precision).numpy()
        with open(folder / f"e{number:03d}.npz", "wb") as file:
            np.savez(file, **found)  # type: ignore[arg-type]
    torch.save(filters.model.fc.state_dict(), folder / "decoder.pt")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cell", type=Path, required=True)
    options.add_argument("--share", choices=("none", "early", "delta"), required=True)
    options.add_argument("--gate", choices=("trunk", "branch", "random"), default="trunk")
    options.add_argument("--scale", type=float, default=1.0)
    options.add_argument("--teacher", type=float, default=0.0)
    options.add_argument("--decay", type=float, default=1e-3, help="of an expert's difference from the shared filters")
    options.add_argument("--epochs", type=float, help="of the experts; without it the cell's")
    args = options.parse_args()
    if args.teacher and args.gate == "branch":
        options.error("--teacher: wanted --gate trunk or random, whose experts the cell has")
    torch.set_num_threads(1)
    cell = open_cell(args.cell)
    training = cell.context.study.expert_training
    training = training.model_copy(update={"epochs": args.epochs or training.epochs})
    about = f"{args.share}-{args.gate}-{training.epochs:g}" + (f"-{args.decay:g}" if args.share == "delta" else "")
    about += (f"-x{args.scale:g}" if args.scale != 1 else "") + (f"-t{args.teacher:g}" if args.teacher else "")
    gate_folder, folder = args.cell / "variants" / args.gate, args.cell / "variants" / about
    for one in (gate_folder, folder):
        one.mkdir(parents=True, exist_ok=True)
    by = routes(cell, args.gate, gate_folder)
    decoder = reading.last_layer(cell.context.need("trunk"))
    if not (folder / "decoder.pt").exists():
        taught_NV = teacher_of(cell, args.gate, gate_folder / "teacher.npy") if args.teacher else np.empty((0, 0))
        filters = Filters(cell, args.share, args.scale, training, args.decay)
        train(cell, by, filters, training, args.teacher, taught_NV)
        write(cell, by, filters, training, folder)
    decoder.load_state_dict(torch.load(folder / "decoder.pt", weights_only=True))
    features = {split: gathered(folder, by, split, decoder.in_features) for split in by}
    known = controls(cell)
    whole = args.share != "none"
    print(f"multiply-adds an image: {adds_of(cell, args.gate, args.scale, whole):,}")
    for name, right_N in answers(cell, args.gate, features, decoder):
        np.save(folder / f"{name.replace(' ', '-')}.npy", right_N)
        print(f"{about}, {name}: {shown(right_N, known)}")


if __name__ == "__main__":
    main()
