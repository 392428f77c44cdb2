"""Asking a mixture: predict."""

import math
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.commands.common import JSON
from pipelines.terminal import echo, echo_json

if TYPE_CHECKING:
    import numpy as np

    from moe_core.serving.bundle import Bundle


@click.command(short_help="Hashtags of images.")
@click.option(
    "--bundle",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of a mixture, or of a study: its published one.",
)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", default=5, show_default=True, help="Hashtags an image.")
@click.option("--topk", default=1, show_default=True, help="Experts asked for an image; 1: the published answer.")
@click.option(
    "--temperature",
    type=float,
    default=None,
    help="T of softmax(-d^2/T), the weights of --topk.  [default: the bundle's]",
)
@click.option("--memory", default=4096, show_default=True, help="MiB of experts held at once.")
@click.option("--window", default=256, show_default=True, help="MiB kept of the images looked at together.")
@JSON
def predict(
    bundle: Path,
    images: tuple[Path, ...],
    top: int,
    topk: int,
    temperature: float | None,
    memory: int,
    window: int,
    as_json: bool,
) -> None:
    """Hashtags of image files, and of all image files in folders.

    Example: hardmoe predict --bundle cats cat.jpg holiday/ --top 3
    """
    from moe_core.publication import published_bundle
    from moe_core.serving.bundle import Bundle
    from moe_core.serving.files import files_of

    for option, value in (("top", top), ("topk", topk), ("memory", memory), ("window", window)):
        if value < 1:
            raise ValueError(f"--{option} {value}: wanted at least 1")
    if temperature is not None and not 0 < temperature < math.inf:
        raise ValueError(f"--temperature {temperature}: wanted a number above 0")
    path = published_bundle(bundle) if (bundle / "study.toml").exists() else bundle
    opened = Bundle(path, expert_bytes=memory << 20)
    failed, separator = False, "["
    for answer in _predictions(opened, list(files_of(images)), top, topk, temperature, window << 20):
        failed |= "error" in answer
        if as_json:
            echo_json(answer, before=separator, end="")
            separator = ",\n"
        if "error" in answer:
            echo(f"Error: {answer['image']}: {answer['error']}", err=True)
        elif not as_json:
            words = "  ".join(f"{tag['tag']} {tag['p']:.3f}" for tag in answer["tags"])
            who = answer["expert"] if answer["expert_published"] else f"{answer['expert']}: trunk"
            echo(f"{answer['image']}  [{who}]  {words}")
    if as_json:
        echo("]")
    if failed:
        sys.exit(1)


def _predictions(
    bundle: "Bundle", paths: list[Path], top: int, topk: int, temperature: float | None, window_bytes: int
) -> Iterator[dict[str, Any]]:
    """The answer to each file in turn, or what is wrong with it."""
    import torch

    from moe_core import threads
    from moe_core.models.cost import multiply_adds
    from moe_core.serving.files import BATCH, decoded
    from moe_core.serving.routed import routed

    work = multiply_adds(bundle.router, bundle.image_size) * min(BATCH, len(paths))
    threads.use(work, threads.whole_number("HARDMOE_THREADS"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parts: deque[list[tuple[Path, str]]] = deque()  # read, not yet answered

    def batches() -> "Iterator[np.ndarray]":
        for part in decoded(paths, bundle.image_size, threads.share()):
            parts.append(part.files)
            yield part.images_BHWC

    answers = routed(bundle, batches(), window_bytes=window_bytes, topk=topk, temperature=temperature, device=device)
    for answer in answers:
        rows = iter(zip(answer.probabilities_BV, answer.experts, strict=True))
        for path, error in parts.popleft():
            if error:
                yield {"image": str(path), "error": error}
                continue
            probabilities_V, expert = next(rows)
            best = probabilities_V.topk(min(top, len(bundle.hashtags)))
            tags = [
                {"tag": bundle.hashtags[int(tag)], "p": round(float(p), 5)}
                for p, tag in zip(best.values, best.indices, strict=True)
            ]
            how = bundle.answer if topk == 1 else "mixture_topk"
            yield {
                "image": str(path),
                "expert": expert,
                "expert_published": bundle.published[expert],
                "answer": how,
                "tags": tags,
            }
