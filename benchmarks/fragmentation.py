"""Where does it begin to pay to cut the data into K clusters? Posts x K on synthetic data, against two controls.

    python benchmarks/fragmentation.py --root DIR [--posts 5000 20000 80000 320000] [--experts 2 4 8 16]

For each number of training posts one trunk and one trunk_same_budget (experts together see epochs x posts images,
whatever K is), then for each K the experts of k-means and those of a random partition, each with a decoder refitted.
Network, images and learning rates are the recipe demo's. Epochs fall with the square root of the posts, so that the
cost of all grows as slowly: the table says how many. The mixture answers with the weight of the router that is
best on validation posts, and so do the random experts. Some 10,000 test posts, drawn with the others.

Each cell is kept in DIR/fragmentation.json as soon as it is done: stopped, it goes on there.
--plot FOLDER draws two SVG.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from math import log2
from pathlib import Path
from typing import Any

from linked import LABELLED, link, make

from moe_core.evaluation.plots import BLUE, GREEN, GREY, ORANGE, RED, Line, lines
from moe_core.recipes import demo
from moe_core.serving.bundle import Bundle
from moe_core.settings import Source, Study
from moe_core.stages.evaluation.predictions import open_control
from moe_core.stages.evaluation.rows import controls_of
from moe_core.stages.evaluation.score import gains_over_rows, measure_posts, score
from moe_core.stages.reading import read_routed_posts
from moe_core.stages.training.device import device_and_threads
from moe_core.store.files import write_text

POSTS, EXPERTS = (5_000, 20_000, 80_000, 320_000), (2, 4, 8, 16)
TEST, VALIDATION = 10_000, 1_500
FIRST, TRUNK_EPOCHS, EXPERT_EPOCHS = 5_000, 24.0, 16.0
UPSTREAM = ("posts", "splits", "vocabulary", "trunk", "trunk_features", "trunk_same_budget")
CUT = ("partition", "expert", "random_expert", "shared_decoder", "random_decoder", "mixture")
MIXTURE, CONTROLS = "mixture_top1_router", ("trunk_same_budget", "random_partition_router")
COLOURS = (BLUE, ORANGE, GREEN, RED, GREY)


def study_of(posts: int, experts: int, test: int) -> Study:
    """About so many training posts; the rest of what is drawn is held out, user by user."""
    base, held = demo(), test + VALIDATION
    shorter = (FIRST / posts) ** 0.5
    drawn = posts + held
    return base.model_copy(
        update={
            "name": "fragmentation",
            "source": Source(format="synthetic", posts=drawn, shards=max(1, drawn // 20_000)),
            "data": base.data.model_copy(update={"test": test / drawn, "validation": VALIDATION / drawn}),
            "trunk": base.trunk.model_copy(update={"epochs": round(TRUNK_EPOCHS * shorter, 2)}),
            "expert_training": base.expert_training.model_copy(update={"epochs": round(EXPERT_EPOCHS * shorter, 2)}),
            "partition": base.partition.model_copy(update={"experts": experts}),
            "evaluation": base.evaluation.model_copy(update={"topk": 1}),
        }
    )


def cell_of(context: Any) -> dict[str, Any]:
    """What one number of posts and experts gives."""
    study, resamples = context.study, context.study.evaluation.bootstrap
    device = device_and_threads(study, parallel=False)
    bundle = Bundle(context.need("mixture"))
    test, validation = read_routed_posts(context, "test"), read_routed_posts(context, "validation")
    networks = {name: controls_of(context.planner.graph)[name] for name in ("trunk_same_budget", "random_partition")}
    controls = {name: open_control(context, bundle, of, validation, device) for name, of in networks.items()}
    random_weight = controls["random_partition"].router_weight
    scores, *_ = score(context, bundle, controls, test, device)
    partition = context.need("partition").metadata
    return {
        "training_posts": partition["training_posts"],
        "smallest_expert": min(partition["sizes"]),
        "test_posts": len(test),
        "validation_posts": len(validation),
        "hashtags": len(bundle.hashtags),
        "trunk_epochs": study.trunk.epochs,
        "expert_epochs": study.expert_training.epochs,
        "router_weight": {MIXTURE: bundle.router_weight, "random_partition_router": random_weight},
        "unpublished": [key for key, good in bundle.published.items() if not good],
        "rows": {name: measure_posts(found, resamples) for name, found in scores.items()},
        "mixture_against": gains_over_rows(MIXTURE, scores, resamples),
    }


def measure(root: Path, posts: Sequence[int], experts: Sequence[int], test: int) -> dict[str, dict[str, Any]]:
    """Cells by "posts x K"; those in the file are not made again."""
    file = root / "fragmentation.json"
    cells: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    for count in posts:
        for k in experts:
            if f"{count} x {k}" in cells:
                continue
            began = time.monotonic()
            study = study_of(count, k, test)
            make(study, root / f"{count}", UPSTREAM)
            link(root / f"{count}", root / f"{count}x{k}", (*LABELLED, *UPSTREAM[3:]))
            found = cell_of(make(study, root / f"{count}x{k}", CUT))
            cells[f"{count} x {k}"] = {"posts": count, "experts": k} | found
            cells[f"{count} x {k}"]["seconds"] = round(time.monotonic() - began, 1)
            write_text(file, json.dumps(cells, indent=1))
    return {f"{count} x {k}": cells[f"{count} x {k}"] for count in posts for k in experts}


def table_of(cells: Mapping[str, Mapping[str, Any]]) -> str:
    """P@1 in points; a gain in bold where its interval excludes zero."""

    def gain(cell: Mapping[str, Any], control: str) -> str:
        pair = cell["mixture_against"][control]
        low, high = (100 * bound for bound in pair["p_at_1_gain_ci95"])
        text = f"{100 * pair['p_at_1_gain']:+.1f} ({low:+.1f} to {high:+.1f})"
        return f"**{text}**" if low > 0 or high < 0 else text

    head = (
        "| training posts | epochs | K | smallest expert | trunk | same budget | random | mixture | less same budget | "
    )
    found = [head + "less random |", "| --- " * 10 + "|"]
    for cell in cells.values():
        p = {name: f"{row['p_at_1']:.3f}" for name, row in cell["rows"].items()}
        rows = " | ".join(p[name] for name in ("trunk", *CONTROLS, MIXTURE))
        found.append(
            f"| {cell['training_posts']:,} | {cell['trunk_epochs']:g} + {cell['expert_epochs']:g} | "
            f"{cell['experts']} | {cell['smallest_expert']:,} | {rows} | "
            + " | ".join(gain(cell, name) for name in CONTROLS)
            + " |"
        )
    return "\n".join(found)


def plot(cells: Mapping[str, Mapping[str, Any]], control: str) -> str:
    """The gain over a control in points of P@1 by the number of posts, a curve for each K, with its intervals."""
    posts = sorted({cell["posts"] for cell in cells.values()})
    curves = [Line("", [(log2(posts[0]) - 0.2, 0), (log2(posts[-1]) + 0.2, 0)], GREY, 1)]
    for number, k in enumerate(sorted({cell["experts"] for cell in cells.values()})):
        points, color = [], COLOURS[number % len(COLOURS)]
        for cell in (cell for cell in cells.values() if cell["experts"] == k):
            pair = cell["mixture_against"][control]
            at = log2(cell["posts"]) + 0.06 * number  # side by side
            points.append((at, 100 * pair["p_at_1_gain"]))
            curves.append(Line("", [(at, 100 * bound) for bound in pair["p_at_1_gain_ci95"]], color, 1.2))
        curves.append(Line(f"K={k}", points, color))
    marks = [(log2(count), f"{count / 1000:g}k") for count in posts]
    return lines(curves, "training posts", "points of P@1", marks)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--root", type=Path, required=True)
    options.add_argument("--posts", type=int, nargs="+", default=POSTS)
    options.add_argument("--experts", type=int, nargs="+", default=EXPERTS)
    options.add_argument("--test", type=int, default=TEST)
    options.add_argument("--plot", type=Path, help="folder for two SVG")
    args = options.parse_args()
    cells = measure(args.root, args.posts, args.experts, args.test)
    print(table_of(cells))
    if args.plot:
        args.plot.mkdir(parents=True, exist_ok=True)
        for control in CONTROLS:
            (args.plot / f"fragmentation-{control}.svg").write_text(plot(cells, control))


if __name__ == "__main__":
    main()
