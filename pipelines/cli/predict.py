"""Asking a mixture: predict."""

import math
import sys
from collections import deque
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from moe_core import threads
from moe_core.errors import BadSetting
from moe_core.evaluation.metrics import best_hashtags
from moe_core.models.cost import multiply_adds
from moe_core.serving.bundle import Bundle
from moe_core.serving.files import BATCH, decoded, files_of
from moe_core.serving.routed import routed
from moe_core.text import shown
from pipelines.cli.asking import asks_a_mixture, chosen_mixture
from pipelines.cli.options import JSON
from pipelines.terminal import echo, echo_json

LISTED = 10  # files of a reason that are named


@click.command()
@asks_a_mixture
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", default=5, show_default=True, help="Hashtags an image.")
@click.option("--topk", default=1, show_default=True, help="Experts asked for an image; 1: the published answer.")
@click.option(
    "--temperature",
    type=float,
    default=None,
    help="T of softmax(-d^2/T), the weights of --topk.  [default: the bundle's]",
)
@click.option(
    "--memory",
    type=int,
    default=None,
    help="MiB of experts held at once.  [default: 4096; on a GPU half of what is free there]",
)
@click.option("--window", default=256, show_default=True, help="MiB kept of the images looked at together.")
@JSON
@click.pass_context
def predict(
    ctx: click.Context,
    study_file: Path,
    version: str | None,
    bundle: Path | None,
    images: tuple[Path, ...],
    top: int,
    topk: int,
    temperature: float | None,
    memory: int | None,
    window: int,
    as_json: bool,
) -> None:
    """Hashtags of image files, and of all image files in folders.

    What is left out in folders is counted and listed on standard error; with --json it is an entry with "skipped".

    \b
    Example: hardmoe predict --study cats cat.jpg holiday/ --top 3
             hardmoe predict --bundle cats/mixture/1f0c8e holiday/
    """
    for option, value in (("top", top), ("topk", topk), ("memory", memory), ("window", window)):
        if value is not None and value < 1:
            raise BadSetting(f"--{option} {value}: wanted at least 1")
    if temperature is not None and not 0 < temperature < math.inf:
        raise BadSetting(f"--temperature {temperature}: wanted a number above 0")
    opened = Bundle(chosen_mixture(ctx, bundle, study_file, version), expert_bytes=memory << 20 if memory else None)
    paths, left_out = files_of(images)
    _show_skipped(left_out)
    skipped = [{"image": str(path), "skipped": why} for path, why in left_out] if as_json else []
    failed, separator = False, "["
    for answer in chain(skipped, _predictions(opened, paths, top, topk, temperature, window << 20)):
        failed |= "error" in answer
        if as_json:
            echo_json(answer, before=separator, end="")
            separator = ",\n"
        if "error" in answer:
            echo(f"Error: {answer['image']}: {answer['error']}", err=True)
        elif not as_json:
            words = "  ".join(f"{tag['tag']} {tag['p']:.3f}" for tag in answer["tags"])
            expert = answer["expert"] if answer["expert_published"] else f"{answer['expert']}: trunk"
            echo(f"{answer['image']}  [{expert}]  {words}")
    if as_json:
        echo("]")
    if failed:
        sys.exit(1)


def _show_skipped(skipped: list[tuple[Path, str]]) -> None:
    """A line for each reason, with the first names."""
    names: dict[str, list[str]] = {}
    for path, why in skipped:
        names.setdefault(why, []).append(shown(path, 200))
    for why, paths in names.items():
        more = f" and {len(paths) - LISTED:,} more" if len(paths) > LISTED else ""
        echo(f"Skipped {len(paths):,} ({why}): {', '.join(paths[:LISTED])}{more}", err=True)


def _predictions(
    bundle: Bundle, paths: list[Path], top: int, topk: int, temperature: float | None, window_bytes: int
) -> Iterator[dict[str, Any]]:
    """The answer to each file in turn, or what is wrong with it."""
    work = multiply_adds(bundle.router, bundle.image_size) * min(BATCH, len(paths))
    threads.use(work, threads.whole_number("HARDMOE_THREADS"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parts: deque[list[tuple[Path, str]]] = deque()  # read, not yet answered

    def batches() -> Iterator[np.ndarray]:
        for files, images_BHWC in decoded(paths, bundle.image_size, threads.share()):
            parts.append(files)
            yield images_BHWC

    answers = routed(bundle, batches(), window_bytes=window_bytes, topk=topk, temperature=temperature, device=device)
    for answer in answers:
        best_BK = best_hashtags(answer.probabilities_BV, top)
        p_BK = answer.probabilities_BV.gather(1, best_BK.to(answer.probabilities_BV.device)).cpu()
        rows = iter(zip(p_BK.tolist(), best_BK.tolist(), answer.experts, strict=True))
        for path, error in parts.popleft():
            if error:
                yield {"image": str(path), "error": error}
                continue
            p_K, best_K, expert = next(rows)
            tags = [{"tag": bundle.hashtags[tag], "p": round(p, 5)} for p, tag in zip(p_K, best_K, strict=True)]
            how = bundle.answer if topk == 1 else "mixture_topk"
            yield {
                "image": str(path),
                "expert": expert,
                "expert_published": bundle.published[expert],
                "answer": how,
                "tags": tags,
            }
