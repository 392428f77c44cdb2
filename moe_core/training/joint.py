"""Experts trained together with one decoder: local steps, then one outer step of the decoder, round after round.

An expert's steps are cut into rounds. In each it trains with a copy of the decoder of its own; then the changes of all
the copies are averaged, weighted by their experts' posts, and the decoder takes an outer Nesterov step along the mean
(Douillard et al., DiLoCo, arXiv 2311.08105). Networks, momentum and schedules stay where they are: only the decoder
travels.

It travels through files, in a folder that all processes see. A free process takes the next expert of the round under
its lock, so there may be more experts than processes, processes may come and go, and the work of a killed process is
resumed by another from its last checkpoint. A file appears whole, under its name, or not at all, and a round's mean is
computed in the order of the experts: the result depends neither on who trained what nor on who was killed.

    decoder-0007.safetensors        the decoder after 7 rounds, and its velocity
    0007.e003.safetensors           expert e003 at the end of the round numbered 7: checkpoint of the training loop
    0007.e003.open.safetensors      the same within that round
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moe_core.errors import LockHeld
from moe_core.models.resnet import ResNet
from moe_core.store.files import fsync
from moe_core.store.locks import exclusive
from moe_core.training.loop import Measurement, steps_of, train
from moe_core.training.posts import ImagesOnDevice, Posts, bytes_for_posts
from moe_core.weights import load_weights, save_weights

if TYPE_CHECKING:
    from moe_core.settings import Decoder, Training

POLL_SECONDS = 0.1  # while others train the rest of a round
NAMES = ("weight", "bias")


@dataclass(frozen=True)
class Joint:
    """One joint training, the same in every process that takes part."""

    folder: Path
    posts: Mapping[str, Posts]  # of each expert
    network: Callable[[str], ResNet]  # an expert as it starts, all with the same last layer
    training: Training
    decoder: Decoder

    def decoder_file(self, rounds: int) -> Path:
        return self.folder / f"decoder-{rounds:04d}.safetensors"

    def expert_file(self, number: int, key: str) -> Path:
        return self.folder / f"{number:04d}.{key}.safetensors"

    def rounds_done(self) -> int:
        """Number of rounds whose decoder is saved."""
        numbers = [int(path.name[8:12]) for path in self.folder.glob("decoder-????.safetensors")]
        return max(numbers, default=0)

    def last_step(self, number: int, key: str) -> int:
        """Steps that an expert has done at the end of the round; a round may have none where posts are few."""
        steps = steps_of(len(self.posts[key]), self.training)
        return -(-steps * (number + 1) // self.decoder.rounds)


@dataclass(frozen=True)
class Trained:
    """Some steps of one expert in one round."""

    key: str
    number: int
    measurement: Measurement


def take_part(joint: Joint, device: str = "cpu") -> Iterator[Trained | None]:
    """Trains experts that no other process trains until the last round is done; yields None while it waits for others.

    Raises what the training loop raises.
    """
    joint.folder.mkdir(parents=True, exist_ok=True)
    if not any(joint.folder.glob("decoder-????.safetensors")):
        start = joint.network(next(iter(joint.posts))).fc
        _save_decoder(joint.decoder_file(0), start.state_dict(), {n: torch.zeros(()) for n in NAMES})
    room, kept = bytes_for_posts(joint.training.device_mib, device), dict[str, Posts]()
    largest_first = sorted(joint.posts, key=lambda key: -len(joint.posts[key]))
    while (number := joint.rounds_done()) < joint.decoder.rounds:
        left = [key for key in largest_first if not joint.expert_file(number, key).exists()]
        if not left:
            if not _close(joint, number):
                yield None
                time.sleep(POLL_SECONDS)
            continue
        for key in left:
            try:
                with exclusive(joint.folder / f".lock-{key}", wait=False):
                    if joint.rounds_done() == number and not joint.expert_file(number, key).exists():
                        if key not in kept:  # its images stay on the device for the rounds to come
                            kept[key] = joint.posts[key].on_device(room, device)
                            images = kept[key].images
                            room -= images.nbytes if isinstance(images, ImagesOnDevice) else 0
                        for measurement in _train_round(joint, number, key, kept[key], device):
                            yield Trained(key, number, measurement)
                break
            except LockHeld:
                continue
        else:
            yield None
            time.sleep(POLL_SECONDS)


def trained_decoder(joint: Joint) -> dict[str, Tensor]:
    """The decoder after the last round."""
    return _load_decoder(joint.decoder_file(joint.decoder.rounds))[0]


def trained_expert(joint: Joint, key: str) -> dict[str, Tensor]:
    """An expert's network after the last round, with that round's decoder as its last layer."""
    state, _ = load_weights(joint.expert_file(joint.decoder.rounds - 1, key))
    model = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
    return model | {f"fc.{name}": tensor for name, tensor in trained_decoder(joint).items()}


def outer_step(
    decoder: Mapping[str, Tensor],
    velocity: Mapping[str, Tensor],
    trained: Sequence[Mapping[str, Tensor]],
    posts: Sequence[int],
    lr: float,
    momentum: float,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the next decoder, the next velocity): a Nesterov step against the mean of `decoder` - each of `trained`.

    Weights of the mean are the posts of each expert. Summed in float64 in the order given; one expert, lr 1 and
    momentum 0 give that expert's decoder, to the bit.
    """
    moved, faster = {}, {}
    for name in NAMES:
        old = decoder[name].double()
        gradient = torch.zeros_like(old)
        for own, count in zip(trained, posts, strict=True):
            gradient += (old - own[name].double()) * (count / sum(posts))
        faster[name] = momentum * velocity[name].double() + gradient
        moved[name] = (old - lr * (gradient + momentum * faster[name])).to(decoder[name].dtype)
    return moved, faster


def _train_round(joint: Joint, number: int, key: str, posts: Posts, device: str) -> Iterator[Measurement]:
    """Trains an expert from the end of the last round to the end of this one. The caller holds its lock."""
    whole, begun = joint.expert_file(number, key), joint.folder / f"{number:04d}.{key}.open.safetensors"
    if number > 0 and not begun.exists():
        decoder, _ = _load_decoder(joint.decoder_file(number))
        state, about = load_weights(joint.expert_file(number - 1, key))
        save_weights(begun, state | {f"model.fc.{name}": decoder[name] for name in NAMES}, about)
    yield from train(
        joint.network(key),
        posts,
        joint.training.model_copy(update={"device_mib": 0}),  # images that fit are there already
        train_decoder=number < joint.decoder.rounds - joint.decoder.settle_rounds,
        until=joint.last_step(number, key),
        checkpoint=begun,
        device=device,
    )
    begun.replace(whole)
    fsync(joint.folder)


def _close(joint: Joint, number: int) -> bool:
    """Writes the decoder after the round and removes the files of the round before; False if another process does."""
    with ExitStack() as held:
        try:
            held.enter_context(exclusive(joint.folder / ".lock-decoder", wait=False))
        except LockHeld:
            return False
        if joint.rounds_done() > number:
            return True
        decoder, velocity = _load_decoder(joint.decoder_file(number))
        if number < joint.decoder.rounds - joint.decoder.settle_rounds:
            trained = []
            for key in joint.posts:
                state, _ = load_weights(joint.expert_file(number, key))
                trained.append({name: state[f"model.fc.{name}"] for name in NAMES})
            sizes = [len(posts) for posts in joint.posts.values()]
            outer = joint.decoder
            decoder, velocity = outer_step(decoder, velocity, trained, sizes, outer.outer_lr, outer.outer_momentum)
        _save_decoder(joint.decoder_file(number + 1), decoder, velocity)
        fsync(joint.folder)
        for key in joint.posts:
            joint.expert_file(number - 1, key).unlink(missing_ok=True)
        joint.decoder_file(number - 1).unlink(missing_ok=True)
    return True


def _save_decoder(path: Path, decoder: Mapping[str, Tensor], velocity: Mapping[str, Tensor]) -> None:
    save_weights(path, dict(decoder) | {f"velocity.{name}": velocity[name] for name in NAMES}, {})


def _load_decoder(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    state, _ = load_weights(path)
    return {name: state[name] for name in NAMES}, {name: state[f"velocity.{name}"] for name in NAMES}
