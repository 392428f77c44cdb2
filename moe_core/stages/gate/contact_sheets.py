"""What a person sees of a partition: pictures and hashtags of each cluster.

Letters: N posts, K experts, V hashtags, T tags of all posts.
"""

from pathlib import Path
from typing import Any

import numpy as np

from moe_core.data.images import contact_sheet
from moe_core.data.loading import Labels
from moe_core.engine.context import Context
from moe_core.stages import reading

COLUMNS, PICTURES = 6, 12  # of a contact sheet
SIDE = 64  # pixels of a picture on it
HASHTAGS = 12  # of each cluster


def write_sheets(
    context: Context,
    folder: Path,
    index: reading.Index,
    expert_N: np.ndarray,
    distance_N: np.ndarray,
    gap_N: np.ndarray,
) -> None:
    """Two contact sheets a cluster, of its training posts: `sheets/e000.typical.png` of those nearest to its centroid
    (`distance_N`), `sheets/e000.ambiguous.png` of those that another expert almost got (`gap_N`, infinite where there
    is no other)."""
    (folder / "sheets").mkdir()
    chosen = {}
    training_N = index.use("train")
    for number, key in enumerate(context.experts):
        mine = np.flatnonzero(training_N & (expert_N == number))
        for name, measure_N in (("typical", distance_N), ("ambiguous", gap_N)):
            rows = mine[np.argsort(measure_N[mine], kind="stable")[:PICTURES]]
            chosen[f"{key}.{name}"] = rows[np.isfinite(measure_N[rows])]
    wanted_N = np.zeros(len(expert_N), bool)
    wanted_N[np.concatenate(list(chosen.values()))] = True
    place_N = np.cumsum(wanted_N) - 1
    images = reading.posts_where(context, index, wanted_N).images
    for name, rows in chosen.items():
        if len(rows):
            sheet = contact_sheet(images.read(place_N[rows]), COLUMNS, SIDE)
            (folder / "sheets" / f"{name}.png").write_bytes(sheet)


def top_hashtags(
    hashtags: list[str], labels: Labels, training_N: np.ndarray, expert_N: np.ndarray, experts: int
) -> list[list[list[Any]]]:
    """Of each cluster, [hashtag, posts of the cluster with it, times its share among all posts] of those that set it
    apart: by posts x log(times), the cluster's part of the mutual information of hashtag and cluster."""
    owner_T = np.repeat(np.arange(len(training_N)), np.diff(labels.starts_N1))
    use_T = training_N[owner_T]
    counts_KV = np.zeros((experts, len(hashtags)), np.int32)
    np.add.at(counts_KV, (expert_N[owner_T[use_T]], labels.tags_T[use_T]), 1)
    share_V = counts_KV.sum(0) / max(counts_KV.sum(), 1)
    found = []
    for count_V in counts_KV:
        there = np.flatnonzero(count_V)
        times = count_V[there] / count_V.sum() / share_V[there]
        order = np.argsort(-count_V[there] * np.log(times), kind="stable")
        best = [n for n in order[:HASHTAGS] if times[n] > 1]
        found.append([[hashtags[there[n]], int(count_V[there[n]]), round(float(times[n]), 1)] for n in best])
    return found
