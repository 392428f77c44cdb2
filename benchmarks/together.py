"""Experts that share filters and go on training them together, on a cell that benchmarks/law.py has made; measured as
in benchmarks/variants.py, which trains the same experts apart.

    python benchmarks/together.py --cell DIR/235000-w8-k16-s0-early --share early|delta [--gate trunk|branch|random]

--share early: the stem, the first stages and the decoder are one for all and learn from every post; later stages are
an expert's own. --share delta: every filter is a shared one plus the expert's own difference from it, which decays
(--decay). Statistics of batch norm are an expert's own. One process trains all: each step is a batch of one expert's
posts, experts in a drawn order, as if outer steps were as frequent as inner ones: the most that exchange can bring.

An answer costs the gate's network and a whole expert: the stages that go on training are no longer the trunk's.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from variants import Cell, Routes, answers, controls, gathered, open_cell, routes, shown

from moe_core.models.resnet import build, shared_layer_names
from moe_core.settings import Training
from moe_core.stages import reading
from moe_core.stages.experts.shared_decoder import Moved
from moe_core.training.batches import batches, normalize
from moe_core.training.infer import features_of
from moe_core.training.loop import learning_rate, steps_of
from moe_core.training.losses import hashtag_loss
from moe_core.training.order import moves_of

Weights = dict[str, Tensor]


def sgd(weights: dict[str, nn.Parameter], decay: float) -> torch.optim.SGD:
    return torch.optim.SGD(weights.values(), lr=0.0, momentum=0.9, nesterov=True, weight_decay=decay)


class Filters:
    """Weights of all experts: shared ones, an expert's own, and where both are, their sum."""

    def __init__(self, cell: Cell, share: str, training: Training, decay: float) -> None:
        trunk = reading.network(cell.context, cell.context.need("trunk"))
        experts = len(cell.context.experts)
        self.model = build(cell.context.study.network, trunk.fc.out_features, training.seed)
        self.model.load_state_dict(trunk.state_dict())
        start = {name: weight.detach() for name, weight in self.model.named_parameters()}
        early = (*shared_layer_names(cell.shared), "fc")
        both = share == "delta"
        shared = {name for name in start if both or name.split(".")[0] in early}
        own = {name for name in start if (both and not name.startswith("fc.")) or name not in shared}
        self.shared = {name: nn.Parameter(start[name].clone()) for name in sorted(shared)}
        self.own = [
            {n: nn.Parameter(torch.zeros_like(start[n]) if both else start[n].clone()) for n in sorted(own)}
            for _ in range(experts)
        ]
        self.statistics = [{n: b.clone() for n, b in self.model.named_buffers()} for _ in range(experts)]
        self.optimizer = sgd(self.shared, training.weight_decay)
        self.own_optimizers = [sgd(own, decay if both else training.weight_decay) for own in self.own]

    def of(self, expert: int) -> Weights:
        own = self.own[expert]
        merged: Weights = {name: weight + own[name] if name in own else weight for name, weight in self.shared.items()}
        return own | merged | self.statistics[expert]

    def step(self, expert: int, images_BCHW: Tensor, tags_BM: Tensor, lr: float, bfloat16: bool, loss: str) -> float:
        optimizers = self.optimizer, self.own_optimizers[expert]
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = lr
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits_BV = functional_call(self.model, self.of(expert), (normalize(images_BCHW),))
        value = hashtag_loss(logits_BV, tags_BM, loss)
        value.backward()
        for optimizer in optimizers:
            optimizer.step()
        return value.item()


def train(cell: Cell, by: Routes, filters: Filters, training: Training) -> None:
    experts = len(cell.context.experts)
    posts = [cell.train.subset(np.flatnonzero(by["train"] == number)) for number in range(experts)]
    steps = [steps_of(len(its), training) for its in posts]
    order = np.random.default_rng(training.seed).permutation(np.repeat(np.arange(experts), steps))
    streams = [batches(its, training, 0, count) for its, count in zip(posts, steps, strict=True)]
    filters.model.train()
    losses = []
    for done, number in enumerate(order):
        batch = next(streams[number])
        lr = learning_rate(training.schedule, training.lr, training.warmup, done, len(order))
        bfloat16 = training.precision != "float32"
        losses.append(filters.step(number, batch.images_BCHW, batch.tags_BM, lr, bfloat16, training.loss))
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
    options.add_argument("--share", choices=("early", "delta"), required=True)
    options.add_argument("--gate", choices=("trunk", "branch", "random"), default="trunk")
    options.add_argument("--decay", type=float, default=1e-3, help="of an expert's difference from the shared filters")
    options.add_argument("--epochs", type=float, help="of the experts; without it the cell's")
    args = options.parse_args()
    torch.set_num_threads(1)
    cell = open_cell(args.cell)
    training = cell.context.study.expert_training
    training = training.model_copy(update={"epochs": args.epochs or training.epochs})
    about = f"{args.share}-{args.gate}-{training.epochs:g}" + (f"-{args.decay:g}" if args.share == "delta" else "")
    gate_folder, folder = args.cell / "variants" / args.gate, args.cell / "variants" / about
    for one in (gate_folder, folder):
        one.mkdir(parents=True, exist_ok=True)
    by = routes(cell, args.gate, gate_folder)
    decoder = reading.last_layer(cell.context.need("trunk"))
    if not (folder / "decoder.pt").exists():
        filters = Filters(cell, args.share, training, args.decay)
        train(cell, by, filters, training)
        write(cell, by, filters, training, folder)
    decoder.load_state_dict(torch.load(folder / "decoder.pt", weights_only=True))
    features = {split: gathered(folder, by, split, decoder.in_features) for split in by}
    known = controls(cell)
    for name, right_N in answers(cell, args.gate, features, decoder):
        np.save(folder / f"{name.replace(' ', '-')}.npy", right_N)
        print(f"{about}, {name}: {shown(right_N, known)}")


if __name__ == "__main__":
    main()
