"""Where does a hard mixture pay? Its gain by training posts, width of the network and K, on a table of real pictures.

    python benchmarks/law.py --source photos.parquet --root DIR [--posts 16000 59000 235000] [--widths 8] [--experts 16]
        [--seeds 0] [--epochs 8 4] [--hours 1] [--cells FOLDER] [--plot FOLDER]

The table has the columns id, image, tags (lists), split (train or test; other rows are left out) and, optionally,
source; law_table.py takes so many posts of it. The recipe is `small`; --epochs are those of trunk and experts for the
most posts, and grow with the square root of the posts that are left out. In a cell the published mixture meets, post by
post, the trunk trained further for the same budget, one wider network of the mixture's cost, and a random partition
with the router's answer; also within each source, and without the hashtags that name a source. The trunk and the
controls are the same for every K.

A cell is kept in --cells (DIR/cells) as soon as it is done, and every network before in DIR: stopped, or after --hours,
it goes on there. Another table wants another DIR, other epochs or settings another --label. Several processes may work
on one DIR. Printed at the end: all the cells that there are; those that docs/explanation/results.md shows are in
benchmarks/law-cells.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, cycle, product
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from law_table import labels_of, table_of
from linked import LABELLED, link, make
from seeds import with_settings

from moe_core.engine.context import Context
from moe_core.errors import HardmoeError
from moe_core.evaluation.metrics import best_hashtags, bootstrap, paired_difference
from moe_core.evaluation.plots import BLUE, GREEN, GREY, ORANGE, RED, Line, lines
from moe_core.recipes import small
from moe_core.serving.bundle import Bundle
from moe_core.settings import Source, Study
from moe_core.stages import reading
from moe_core.stages.evaluation.predictions import control_predictions, mixture_predictions, open_control
from moe_core.stages.evaluation.rows import controls_of
from moe_core.stages.reading import RoutedPosts, read_routed_posts
from moe_core.stages.training.device import device_and_threads
from moe_core.store.files import write_text

POSTS = (16_000, 59_000, 235_000)
TRAINING_SAMPLE = 5_000
RESAMPLES = 2_000
LABELLED_STAGES = ("posts", "splits", "vocabulary")
OF_TRUNK = ("trunk", "trunk_features", "trunk_same_budget", "dense_same_cost")
CUT = ("partition", "expert", "random_expert", "shared_decoder", "random_decoder", "mixture")
LESS = ("trunk_same_budget", "dense_same_cost", "random_partition_router", "separate_decoders_top1_router", "trunk")
COLOURS = (BLUE, ORANGE, GREEN, RED)
NAMING = 0.9  # of a source's posts carry a hashtag that names it, and of that hashtag's posts are from the source


def study_of(table: Path, times: float, width: int, experts: int, seed: int, epochs: Sequence[float]) -> Study:
    """The recipe `small` with `times` as many epochs, one seed for all that is drawn."""
    base = small()
    trunk, expert = (round(times * count, 1) for count in epochs)
    return base.model_copy(
        update={
            "name": "law",
            "source": Source(format="parquet", uri=str(table.absolute())),
            "network": base.network.model_copy(update={"widths": (width, 2 * width, 4 * width)}),
            "trunk": base.trunk.model_copy(update={"epochs": trunk, "seed": seed}),
            "expert_training": base.expert_training.model_copy(update={"epochs": expert, "seed": seed}),
            "partition": base.partition.model_copy(update={"experts": experts, "seed": seed}),
        }
    )


def naming_tags(context: Context, bundle: Bundle, source: pl.DataFrame) -> list[int]:
    """Numbers of the hashtags that name a source: in the whole table, so the same whatever part is trained on."""
    if "source" not in source.columns:
        return []
    number = {tag: place for place, tag in enumerate(bundle.hashtags)}
    train = source.filter(pl.col("split") == "train")
    of_source = train.group_by("source").len("posts")
    pairs = train.select("source", "tags").explode("tags").group_by("source", "tags").len("both")
    pairs = pairs.with_columns(of_tag=pl.col("both").sum().over("tags")).join(of_source, on="source")
    named = pairs.filter(pl.col("both") >= NAMING * pl.max_horizontal("of_tag", "posts"))["tags"]
    return sorted(number[tag] for tag in named if tag in number)


def first_hits(
    context: Context, bundle: Bundle, controls: Mapping[str, Any], some: RoutedPosts, naming: Sequence[int], device: str
) -> dict[str, np.ndarray]:
    """By row, (2, N): whether the first hashtag of a post is right, of all and of those that name no source; not a
    number where a post has none of these."""
    predicted = mixture_predictions(context, bundle, some, device)
    answers = [control_predictions(context, bundle, row, of, some, device) for row, of in controls.items()]
    found: dict[str, np.ndarray] = {}
    for name, rows_B, p_BV in chain(predicted, *answers):
        tags_T, starts_B1 = some.posts.tag_rows(rows_B)
        owner_T = np.repeat(np.arange(len(rows_B)), starts_B1.diff().numpy())
        hits_2N = found.setdefault(name, np.full((2, len(some)), np.nan))
        for number, without in enumerate(([], naming)):
            kept_T = ~np.isin(tags_T.numpy(), without)
            best_B = best_hashtags(p_BV.index_fill(1, torch.tensor(without, dtype=torch.long), 0.0), 1)[:, 0].numpy()
            right_B = np.where(np.bincount(owner_T[kept_T], minlength=len(rows_B)) > 0, 0.0, np.nan)
            right_B[owner_T[kept_T & (tags_T.numpy() == best_B[owner_T])]] = 1.0
            hits_2N[number, rows_B] = right_B
    return found


def summary(published: str, found: Mapping[str, np.ndarray], posts_N: np.ndarray) -> dict[str, Any]:
    """P@1 of each row on some posts, and the published one less some others."""
    of_posts = {name: values_N[posts_N] for name, values_N in found.items()}
    judged_N = ~np.isnan(of_posts[published])
    of_posts = {name: values_N[judged_N] for name, values_N in of_posts.items()}
    pairs = {name: (of_posts[published], of_posts[name]) for name in LESS if name in of_posts}
    if published == "mixture_top1" and "random_partition" in of_posts:  # the same answer of the control
        pairs["random_partition_router"] = (of_posts[published], of_posts["random_partition"])
    return {
        "n": int(judged_N.sum()),
        "p_at_1": {name: bootstrap(values, RESAMPLES, 0).as_json("p")["p"] for name, values in of_posts.items()},
        "less": {
            name: paired_difference(*pair, RESAMPLES, 0).as_json("gain")
            for name, pair in pairs.items()
            if judged_N.any()
        },
    }


def training_sample(context: Context) -> RoutedPosts:
    """Some of the posts that the networks were trained on."""
    index = reading.index(context)
    places_N = np.flatnonzero(index.use("train"))
    use_N = np.zeros(len(index.split_N), bool)
    use_N[np.random.default_rng(0).permutation(places_N)[:TRAINING_SAMPLE]] = True
    features_ND = reading.trunk_features_where(context, use_N)
    expert_N, random_N = (reading.assigned(context, column)[use_N] for column in ("expert", "random"))
    return RoutedPosts(reading.posts_where(context, index, use_N), features_ND, expert_N, random_N)


def cell_of(context: Context, labels: pl.DataFrame, separate: bool) -> dict[str, Any]:
    study = context.study
    device = device_and_threads(study, parallel=False)
    bundle = Bundle(context.need("mixture"))
    test, validation = read_routed_posts(context, "test"), read_routed_posts(context, "validation")
    wanted = ["trunk_same_budget", "dense_same_cost", "random_partition", *["separate_decoders_top1"] * separate]
    networks = controls_of(context.planner.graph)
    controls = {row: open_control(context, bundle, networks[row], validation, device) for row in wanted}
    naming = naming_tags(context, bundle, labels)
    found = first_hits(context, bundle, controls, test, naming, device)
    trained = first_hits(context, bundle, controls, training_sample(context), naming, device)
    partition, published = context.need("partition").metadata, bundle.answer
    plain = {name: values_2N[0] for name, values_2N in found.items()}
    every_N, trained_N = np.ones(len(test), bool), np.ones(len(trained[published][0]), bool)
    index = reading.index(context)
    use_N = reading.held_out(context, index, "test")
    ids = chain.from_iterable(reading.ids_of(context, shard.key).to_pylist() for shard in context.shards)
    cell: dict[str, Any] = {
        "training_posts": partition["training_posts"],
        "sizes": partition["sizes"],
        "hashtags": len(bundle.hashtags),
        "naming": [bundle.hashtags[tag] for tag in naming],
        "epochs": [study.trunk.epochs, study.expert_training.epochs],
        "published": published,
        "router_weight": bundle.router_weight,
        "unpublished": [key for key, good in bundle.published.items() if not good],
        **summary(published, plain, every_N),
        "unnamed": summary(published, {name: values_2N[1] for name, values_2N in found.items()}, every_N),
        "training": summary(published, {name: values_2N[0] for name, values_2N in trained.items()}, trained_N),
    }
    if "source" in labels.columns:
        of_id = dict(labels.select("id", "source").iter_rows())
        source_N = np.array([of_id[name] for name, used in zip(ids, use_N, strict=True) if used])
        cell["by_source"] = {str(name): summary(published, plain, source_N == name) for name in np.unique(source_N)}
        cell["mean_of_sources"] = {
            name: round(float(np.mean([one["less"][name]["gain"] for one in cell["by_source"].values()])), 5)
            for name in cell["less"]
        }
    return cell


def check_kept(cell: Path, epochs: Sequence[float], said: Sequence[str]) -> None:
    """Raises SystemExit where a cell has other epochs or settings; old cells do not say their settings."""
    kept = json.loads(cell.read_text())
    if kept["epochs"] == epochs and kept.get("said", said) == said:
        return

    def told(epochs: Sequence[float], said: Sequence[str]) -> str:
        return f"epochs {epochs[0]:g} + {epochs[1]:g}, settings {' '.join(said) or 'of the recipe'}"

    raise SystemExit(
        f"{cell} is kept with {told(kept['epochs'], kept.get('said', ['unknown']))}; wanted was one with "
        f"{told(epochs, said)}: give --label NAME, or another --root or --cells"
    )


def measure(args: argparse.Namespace) -> None:
    """Makes the cells that are wanted and not there yet.

    Raises SystemExit, before the first training, for settings or a table that none can be made of, or where the table
    or cells that are there were made of others.
    """
    if not args.posts:
        return
    until = time.monotonic() + 3600 * args.hours
    planned = []
    for posts, width, seed, experts in product(args.posts, args.widths, args.seeds, args.experts):
        to = args.cells / f"{posts}-w{width}-k{experts}-s{seed}{args.label and f'-{args.label}'}.json"
        table, times = args.root / f"{posts}.parquet", (max(POSTS) / posts) ** 0.5
        try:
            study = with_settings(study_of(table, times, width, experts, seed, args.epochs), args.said)
        except ValueError as error:
            raise SystemExit(str(error)) from None
        if to.exists():
            check_kept(to, [study.trunk.epochs, study.expert_training.epochs], args.said)
        planned.append((posts, width, seed, experts, to, study))
    labels = labels_of(args.source, args.posts)
    args.root.mkdir(parents=True, exist_ok=True)
    for posts, table in {posts: args.root / f"{posts}.parquet" for posts in args.posts}.items():
        if table.exists() or not all(to.exists() for number, *_, to, _ in planned if number == posts):
            table_of(args.source, posts, table)
    for posts, width, seed, experts, to, study in planned:
        if to.exists():
            continue
        separate = experts in args.separate
        labelled = args.root / f"{posts}"
        make(study, labelled, LABELLED_STAGES, until)
        of_trunk = args.root / f"{posts}-w{width}-s{seed}"  # for all labels: versions lie side by side
        link(labelled, of_trunk, LABELLED)
        make(study, of_trunk, OF_TRUNK, until)
        root = args.root / to.stem
        link(of_trunk, root, (*LABELLED, *OF_TRUNK))
        found = cell_of(make(study, root, [*CUT, *["separate_expert"] * separate], until), labels, separate)
        about = {"posts": posts, "width": width, "experts": experts, "seed": seed, "label": args.label}
        to.parent.mkdir(parents=True, exist_ok=True)
        write_text(to, json.dumps(about | {"said": args.said} | found, indent=1))


def cells_of(folder: Path) -> list[dict[str, Any]]:
    """All the cells that there are, in the order of the table."""
    cells = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    return sorted(cells, key=lambda cell: [cell[k] for k in ("label", "width", "posts", "experts", "seed")])


def printed(cells: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table: P@1 and gains in points, with 95 % intervals over the test posts."""

    def gain(cell: Mapping[str, Any], name: str) -> str:
        if name not in cell["less"]:
            return ""
        pair = cell["less"][name]
        low, high = (100 * bound for bound in pair["gain_ci95"])
        return f"{100 * pair['gain']:+.1f} ({low:+.1f} to {high:+.1f})"

    heads = (
        "width",
        "posts",
        "epochs",
        "K",
        "posts an expert",
        "seed",
        "published",
        *(f"less {name}" for name in LESS),
    )
    found = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for cell in cells:
        row = [
            f"{cell['width']} {cell['label']}".strip(),
            f"{cell['training_posts']:,}",
            "{:g} + {:g}".format(*cell["epochs"]),
            cell["experts"],
            f"{cell['training_posts'] // cell['experts']:,}",
            cell["seed"],
            f"{100 * cell['p_at_1'][cell['published']]:.1f}",
            *(gain(cell, name) for name in LESS),
        ]
        found.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(found)


def plot(cells: Sequence[Mapping[str, Any]], control: str) -> str:
    """Gain over a control in points of P@1 by posts an expert, means over seeds: a line for each width, at the number
    of experts that it has most cells of; a pale one from these to other numbers of experts at the same posts. Each
    cell has its interval over test posts. Widths stand a little aside of each other, so that none hides another."""

    def place(cell: Mapping[str, Any]) -> float:
        return round(log2(cell["training_posts"] / cell["experts"]), 2)

    def over(some: Sequence[Mapping[str, Any]], aside: float) -> list[tuple[float, float]]:
        gains: dict[float, list[float]] = {}
        for cell in some:
            gains.setdefault(place(cell), []).append(100 * cell["less"][control]["gain"])
        means = [(at + aside, float(np.mean(values))) for at, values in sorted(gains.items())]
        return means if len(means) > 1 else [(at + end, gain) for at, gain in means for end in (-0.08, 0.08)]

    each = [place(cell) for cell in cells]
    curves = [Line("", [(min(each) - 0.2, 0), (max(each) + 0.2, 0)], GREY, 1)]
    widths = sorted({cell["width"] for cell in cells})
    for number, (colour, width) in enumerate(zip(cycle(COLOURS), widths)):
        aside = 0.06 * (number - (len(widths) - 1) / 2)
        of_width = [cell for cell in cells if cell["width"] == width]
        most, _ = Counter(sorted((cell["experts"] for cell in of_width), reverse=True)).most_common(1)[0]
        for cell in of_width:
            at = place(cell) + aside
            curves.append(Line("", [(at, 100 * bound) for bound in cell["less"][control]["gain_ci95"]], colour, 1))
        for posts in sorted({cell["training_posts"] for cell in of_width}):
            same = [cell for cell in of_width if cell["training_posts"] == posts]
            if len({cell["experts"] for cell in same}) > 1:
                curves.append(Line("", over(same, aside), colour, 4, 0.3))
        at_most = [cell for cell in of_width if cell["experts"] == most]
        curves.append(Line(f"w={width}, K={most}", over(at_most, aside), colour))
    doublings = range(round(min(each) - log2(1000)), round(max(each) - log2(1000)) + 1)  # of 1,000 posts
    marks = [(log2(1000) + n, f"{2.0**n:g}k") for n in doublings]
    return lines(curves, "training posts an expert", "points of P@1", marks)


def whole(text: str) -> int:
    """Raises argparse.ArgumentTypeError for what is no whole number above zero."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"wanted a whole number above 0, got {text}")
    return int(text)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--source", type=Path, required=True)
    options.add_argument("--root", type=Path, required=True)
    options.add_argument("--cells", type=Path, help="folder of the cells, where not DIR/cells")
    options.add_argument("--posts", type=whole, nargs="*", default=POSTS, help="none: only print and plot")
    options.add_argument("--widths", type=whole, nargs="+", default=[8])
    options.add_argument("--experts", type=whole, nargs="+", default=[16])
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--epochs", type=float, nargs=2, default=(8.0, 4.0), help="of trunk and experts")
    options.add_argument("--separate", type=int, nargs="*", default=[], help="K with decoders of their own as well")
    options.add_argument("--set", dest="said", nargs="+", default=[], metavar="SECTION.KEY=VALUE")
    options.add_argument("--label", default="", help="of cells with other settings, such as wide")
    options.add_argument("--hours", type=float, default=1e6)
    options.add_argument("--plot", type=Path, help="folder for SVG")
    args = options.parse_args()
    args.cells, args.said = args.cells or args.root / "cells", sorted(args.said)
    try:
        measure(args)
        cells = cells_of(args.cells)
        print(printed(cells))
        plain = [cell for cell in cells if not cell["label"]]
        if args.plot and not plain:
            raise SystemExit(f"no cell without a label in {args.cells}: --plot wants one; --posts N makes it")
        for control in LESS[:2] if args.plot else ():
            args.plot.mkdir(parents=True, exist_ok=True)
            (args.plot / f"law-{control}.svg").write_text(plot(plain, control))
    except (HardmoeError, OSError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
