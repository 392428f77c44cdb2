"""Transfer to a label that the user names: the mixture's embedding against the trunk's and that of the same budget.

Letters: N test posts, D embedding width.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import torch

from moe_core.engine.context import Context
from moe_core.errors import TooFewPosts
from moe_core.evaluation.metrics import bootstrap, paired_difference
from moe_core.evaluation.transfer import FOLDS, NEIGHBORS, folds_of, neighbors_right, probe_right
from moe_core.serving.bundle import Bundle
from moe_core.settings import Evaluation
from moe_core.stages import reading
from moe_core.stages.evaluation.labels import scan_labels
from moe_core.stages.evaluation.predictions import Control
from moe_core.stages.evaluation.rows import ROWS
from moe_core.stages.reading import RoutedPosts
from moe_core.text import shown

SAMPLE = 10_000  # test posts at most
LEAST = 10  # posts of a label, which is left out with fewer
PROBES = {"neighbors": neighbors_right, "linear": probe_right}
ONE_NETWORK = ("trunk_same_budget", "dense_same_cost")  # controls, each of which embeds all posts


def transfer(
    context: Context, bundle: Bundle, controls: Mapping[str, Control], test: RoutedPosts, device: str
) -> dict[str, Any] | None:
    """How many test posts have their label told right by the posts of other folds, in each embedding; None where the
    study names no labels.

    Raises TooFewPosts where fewer than two labels have LEAST test posts.
    """
    settings = context.study.evaluation
    if not settings.labels_file:
        return None
    rows_N, label_N, group_N, names = _labelled(context, settings)
    posts, fold_N = test.rows(rows_N), folds_of(group_N)
    spaces = {
        "trunk": torch.from_numpy(posts.features_ND),
        "mixture": bundle.features_by_expert(posts.expert_N, posts.posts.images, device),
    }
    for name in ONE_NETWORK:
        if name in controls:
            spaces[name] = controls[name].features(posts.posts, None, bundle.precision, device)
    labels_N, resamples = torch.from_numpy(label_N), settings.bootstrap
    right = {
        name: {probe: of(features, labels_N, fold_N, len(names), device) for probe, of in PROBES.items()}
        for name, features in spaces.items()
    }
    rows = []
    for name, by_probe in right.items():
        row: dict[str, Any] = {"name": name, "title": "the mixture" if name == "mixture" else ROWS[name].title}
        for probe, right_N in by_probe.items():
            row |= bootstrap(right_N, resamples, seed=0).as_json(probe)
            if name != "mixture":
                gain = paired_difference(right["mixture"][probe], right_N, resamples, seed=0)
                row |= gain.as_json(f"{probe}_gain")
        rows.append(row)
    share = float(np.bincount(label_N).max() / len(label_N))
    return {
        "column": settings.labels_column,
        "n": len(label_N),
        "labels": len(names),
        "most_frequent": round(share, 5),  # what one answer to all gets
        "folds": FOLDS,
        "neighbors_voting": NEIGHBORS,
        "rows": rows,
    }


def _labelled(context: Context, settings: Evaluation) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """(their places among the test posts that are judged by, number of the label, group, names of the labels) of at
    most SAMPLE test posts."""
    use_N, first, parts = reading.held_out(context, reading.index(context), "test"), 0, []
    for part in reading.split_batches(context, ["id", "group"]):
        parts.append(part.filter(use_N[first : first + len(part)]))
        first += len(part)
    ours = pl.concat(parts).with_row_index("row")
    id_column, column = settings.labels_id_column, settings.labels_column
    given = scan_labels(settings).select(
        pl.col(id_column).cast(pl.String).alias("id"), pl.col(column).cast(pl.String).alias("label")
    )
    wanted = ours.lazy().join(given.drop_nulls().unique("id", keep="first"), on="id", how="inner")
    found = wanted.sort("row").collect()
    often = found.filter(pl.len().over("label") >= LEAST)
    if often["label"].n_unique() < 2:
        raise TooFewPosts(
            f"evaluation.labels_column = {shown(column)}: {settings.labels_file} has {len(found):,} of the "
            f"{len(ours):,} test posts by {shown(id_column)}, and {often['label'].n_unique()} labels that are on at "
            f"least {LEAST} of them: wanted two or more; name other columns, or raise data.test"
        )
    if len(often) > SAMPLE:
        often = often.sample(SAMPLE, seed=0).sort("row").filter(pl.len().over("label") >= LEAST)
    names = often["label"].unique().sort().to_list()
    number = often["label"].replace_strict(names, range(len(names)), return_dtype=pl.Int64)
    return often["row"].to_numpy().astype(np.int64), number.to_numpy().copy(), often["group"].to_numpy(), names
