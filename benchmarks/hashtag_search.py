"""Hashtag search against k-NN on the trunk's embedding: mean average precision on test posts of real photographs.

Pairs of hashtags that mean the same are found in the training posts (Jaccard at least --jaccard). The rarer of a pair
is held out: a stop list keeps it out of the vocabulary, so no network saw it. Asked is by the other one; a test post
counts as found right where it carries either. Contestants:

    decoder row, cosine     what `hardmoe search` does: the row of the shared decoder, embeddings at length 1
    row less mean row       the same without what all rows share, which a softmax leaves open
    inner product           the row with the embeddings as they are
    k-NN on the trunk       a test post's 20 nearest training posts by the trunk's features vote, weighted by cosine

Intervals: 1,000 resamples of the pairs. Without the photographs nothing is measured, and the exit code is 0.

Example: nice python benchmarks/hashtag_search.py /tmp/hashtags --posts 20000 --epochs 10
"""

import argparse
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl

from moe_core.engine.build import build_all
from moe_core.engine.context import Context
from moe_core.recipes import demo
from moe_core.search.lists import unit
from moe_core.serving.bundle import Bundle
from moe_core.settings import Source, Study
from moe_core.stages import reading
from moe_core.study_file import dump_study
from moe_core.tables.vectors import vectors_in
from moe_core.workspace import open_study

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "photos.parquet"
NEIGHBORS, RESAMPLES, LEAST = 20, 1000, 5  # LEAST: test posts that a pair needs


def pairs_of(tags: list[list[str]], jaccard: float, least: int) -> list[tuple[str, str]]:
    """(held out, asked by): hashtags that are nearly always together, each in one pair, the most frequent first."""
    single, double = Counter[str](), Counter[tuple[str, str]]()
    for of_post in tags:
        single.update(set(of_post))
        double.update(combinations(sorted(set(of_post)), 2))
    used, pairs = set[str](), []
    for (a, b), both in double.most_common():
        alike = both / (single[a] + single[b] - both)
        if both >= least and alike >= jaccard and not {a, b} & used:
            used |= {a, b}
            pairs.append((min(a, b, key=lambda tag: (single[tag], tag)), max(a, b, key=lambda tag: (single[tag], tag))))
    return pairs


def average_precision(score_N: np.ndarray, right_N: np.ndarray) -> float:
    order = np.argsort(-score_N, kind="stable")
    hit_N = right_N[order]
    return float((hit_N.cumsum() / np.arange(1, len(hit_N) + 1))[hit_N].mean())


def study_of(folder: Path, rows: pl.DataFrame, held_out: list[str], epochs: float, experts: int) -> Study:
    folder.mkdir(parents=True)
    rows.write_parquet(folder / "photos.parquet")
    (folder / "held_out.txt").write_text("\n".join(held_out))
    return demo().changed(
        name="hashtags",
        source=Source(format="parquet", uri=str(folder / "photos.parquet"), tags_column="tags"),
        data={"stop_tags": str(folder / "held_out.txt"), "min_posts_per_tag": 10},
        trunk={"epochs": epochs},
        expert_training={"epochs": epochs},
        partition={"experts": experts},
        evaluation={"controls": False},
    )


def scores(context: Context, tags: list[str]) -> dict[str, np.ndarray]:
    """(Q, N) of each contestant, for all posts in the one order."""
    bundle = Bundle(context.need("mixture"))
    folders = [context.need("embeddings", shard.key).folder("embeddings.lance") for shard in context.shards]
    own_ND = np.concatenate([part for folder in folders for part in vectors_in(folder, "embedding")])
    rows_VD = bundle.decoder.weight.detach().numpy()
    number = {tag: place for place, tag in enumerate(bundle.hashtags)}
    asked_QD = rows_VD[[number[tag] for tag in tags]]
    trunk_ND = unit(np.concatenate([part for part, _ in reading.trunk_features(context)]))
    index = reading.index(context)
    train_N = np.flatnonzero(index.use("train"))
    votes_QN = np.zeros((len(tags), len(trunk_ND)), np.float32)
    owner_T = np.repeat(np.arange(len(trunk_ND)), np.diff(index.labels.starts_N1))
    has_QN = np.zeros((len(tags), len(trunk_ND)), bool)
    for place, tag in enumerate(tags):
        has_QN[place, owner_T[index.labels.tags_T == number[tag]]] = True
    for first in range(0, len(trunk_ND), 1024):
        near_BT = trunk_ND[first : first + 1024] @ trunk_ND[train_N].T
        best_BK = np.argpartition(-near_BT, NEIGHBORS, axis=1)[:, :NEIGHBORS]
        weight_BK = np.take_along_axis(near_BT, best_BK, 1)
        votes_QN[:, first : first + 1024] = (has_QN[:, train_N[best_BK]] * weight_BK).sum(-1)
    return {
        "decoder row, cosine": unit(asked_QD) @ unit(own_ND).T,
        "row less mean row": unit(asked_QD - rows_VD.mean(0)) @ unit(own_ND).T,
        "inner product": asked_QD @ own_ND.T,
        "k-NN on the trunk": votes_QN,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the study, which is made there")
    parser.add_argument("--source", type=Path, default=PHOTOS)
    parser.add_argument("--posts", type=int, default=20_000)
    parser.add_argument("--epochs", type=float, default=10.0)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--jaccard", type=float, default=0.9)
    args = parser.parse_args()
    if not args.source.is_file():
        print(f"no file {args.source}: nothing is measured", file=sys.stderr)
        return
    rows = pl.scan_parquet(args.source).select("id", "image", "tags", "split").collect().sample(args.posts, seed=0)
    pairs = pairs_of(rows.filter(pl.col("split") == "train")["tags"].to_list(), args.jaccard, least=20)
    study = study_of(args.folder, rows, [held for held, _ in pairs], args.epochs, args.experts)
    (args.folder / "study.toml").write_text(dump_study(study), "utf-8")
    context = open_study(study, args.folder)
    names = context.planner.graph.usual
    build_all(context, [name for name in names if name not in ("published", "evaluation", "search_index", "report")])
    context = open_study(study, args.folder)
    known = set(Bundle(context.need("mixture")).hashtags)
    tags_of = dict(rows.select("id", "tags").iter_rows())
    posts = [tags_of[one] for shard in context.shards for one in reading.ids_of(context, shard.key).to_pylist()]
    test_N = reading.index(context).use("test")
    right = {
        (held, asked): np.array([bool({held, asked} & set(tags)) for tags in posts])[test_N]
        for held, asked in pairs
        if asked in known
    }
    right = {pair: right_N for pair, right_N in right.items() if right_N.sum() >= LEAST}
    by_name = scores(context, [asked for _, asked in right])
    print(f"{len(posts):,} photographs, {int(test_N.sum()):,} of them test posts; {len(right)} pairs of hashtags")
    print("| search | mean average precision (95 %) |\n| --- | --- |")
    draw = np.random.default_rng(0).integers(0, len(right), (RESAMPLES, len(right)))
    chance_Q = np.array([right_N.mean() for right_N in right.values()])
    print(f"| chance | {chance_Q.mean():.3f} |")
    precision = {
        name: np.array([average_precision(s_N[test_N], r) for s_N, r in zip(score_QN, right.values(), strict=True)])
        for name, score_QN in by_name.items()
    }
    for name, ap_Q in precision.items():
        low, high = np.quantile(ap_Q[draw].mean(1), [0.025, 0.975])
        print(f"| {name} | {ap_Q.mean():.3f} ({low:.3f}-{high:.3f}) |")
    gain_Q = precision["decoder row, cosine"] - precision["k-NN on the trunk"]
    low, high = np.quantile(gain_Q[draw].mean(1), [0.025, 0.975])
    print(f"| decoder row, cosine, less k-NN | {gain_Q.mean():+.3f} ({low:+.3f} to {high:+.3f}) |")


if __name__ == "__main__":
    main()
