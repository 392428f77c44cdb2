"""report: one self-contained HTML page: the table, and what each expert sees."""

import base64
import json
from pathlib import Path
from typing import Any

from moe_core.stages import reading
from moe_core.stages.context import Context
from moe_core.stages.stage import Stage
from moe_core.store import Written

PICTURES = 24  # of each expert
HASHTAGS = 12  # of each expert: the most over-represented


def _make(context: Context, key: str | None, folder: Path) -> Written:
    from moe_core.evaluation.page import render

    evaluation, partition = context.need("evaluation"), context.need("partition")
    table = json.loads(evaluation.file("table.json").read_text("utf-8"))
    logs = {"trunk": context.need("trunk"), **{k: context.need("expert", k) for k in context.experts}}
    posts = [context.need("posts", shard.key).metadata for shard in context.shards]
    reasons: dict[str, int] = {}
    for said in posts:
        for reason, count in said["reasons"].items():
            reasons[reason] = reasons.get(reason, 0) + count
    page = render(
        study=context.study,
        table=table,
        posts={name: sum(said[name] for said in posts) for name in ("read", "accepted", "rejected")},
        reasons=reasons,
        vocabulary=dict(context.need("vocabulary").metadata),
        partition=dict(partition.metadata),
        experts=_experts(context, partition.metadata["sizes"]),
        losses={name: _losses(artefact.file("log.jsonl")) for name, artefact in logs.items()},
    )
    (folder / "report.html").write_text(page, "utf-8")
    return Written({"bytes": len(page.encode())})


def _experts(context: Context, sizes: list[int]) -> list[dict[str, Any]]:
    """Of each expert: its key, its size, pictures of it and the hashtags that set it apart."""
    import numpy as np

    from moe_core.data.images import contact_sheet

    words = reading.vocabulary(context)
    index = reading.index(context)
    use_N = index.use("train")
    expert_N = reading.assignment(context)["expert"].to_numpy()
    ids_T, starts_N1 = index.labels.tags_T, index.labels.starts_N1
    owner_T = np.repeat(np.arange(len(use_N)), np.diff(starts_N1))
    counts_KV = np.zeros((len(sizes), len(words.hashtags)))
    keep_T = use_N[owner_T]
    np.add.at(counts_KV, (expert_N[owner_T[keep_T]], ids_T[keep_T]), 1)
    share_V = (counts_KV.sum(0) + 1) / counts_KV.sum()
    picked_N = np.zeros(len(use_N), bool)
    for number in range(len(sizes)):
        mine = np.flatnonzero(use_N & (expert_N == number))
        picked_N[np.random.default_rng([0, number]).choice(mine, min(PICTURES, len(mine)), replace=False)] = True
    posts = reading.posts_where(context, index, picked_N)
    images_NHWC = posts.images.read(np.arange(len(posts)))
    found = []
    for number, (key, size) in enumerate(zip(context.experts, sizes, strict=True)):
        count_V = counts_KV[number]
        apart_V = count_V * np.log((count_V + 1) / max(count_V.sum(), 1) / share_V)
        best = [int(v) for v in np.argsort(-apart_V, kind="stable")[:HASHTAGS] if count_V[v] > 0]
        sheet = contact_sheet(images_NHWC[expert_N[picked_N] == number], columns=PICTURES // 2)
        found.append(
            {
                "key": key,
                "size": size,
                "hashtags": [words.hashtags[v] for v in best],
                "sheet": base64.b64encode(sheet).decode(),
            }
        )
    return found


def _losses(log: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    return [(line["images_seen"], line["loss"]) for line in lines]


REPORT = Stage(
    name="report",
    keys=None,
    code="1",
    reads=("evaluation", "partition"),
    settings=lambda study: {},
    inputs=lambda context, key: {name: context.version(name) for name in ("evaluation", "partition")},
    make=_make,
    holds="some",  # pictures
)
