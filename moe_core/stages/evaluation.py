"""evaluation: the mixture against its controls on held-out posts, every figure with its interval and its n.

`answers` has what each row of the table answers, `scoring` the measures, `costs` and `unity` the rest of the table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moe_core.settings import Study
from moe_core.stages import reading
from moe_core.stages.context import Context, device_and_threads
from moe_core.stages.costs import costs_of
from moe_core.stages.scoring import AP_POSTS, frequent_tags, per_expert, row_of, score
from moe_core.stages.stage import Stage
from moe_core.stages.unity import unity
from moe_core.store import Written


def _make(context: Context, key: str | None, folder: Path) -> Written:
    from moe_core.evaluation.metrics import paired_difference
    from moe_core.serving.bundle import Bundle

    device = device_and_threads(parallel=False, experts=context.study.partition.experts)
    bundle = Bundle(context.need("mixture").path)
    index = reading.index(context)
    use_N = index.use("test")
    if not use_N.any():
        raise ValueError("no test post carries a hashtag of the vocabulary: raise data.test, or give a split column")
    posts = reading.posts_where(context, index, use_N)
    scores, expert_N, tags = score(context, bundle, posts, use_N, device)
    frequent = frequent_tags(posts, len(bundle.hashtags))
    rows = [row_of(context, name, scores[name], posts, frequent) for name in scores]
    costs = costs_of(context, bundle)
    for row in rows:
        row |= costs[row["name"]]
    resamples = context.study.evaluation.bootstrap
    published = bundle.answer
    against = {}
    for name in scores:
        if name != published:
            pair = paired_difference(
                scores[published].measure("p_at_1"), scores[name].measure("p_at_1"), resamples, seed=0
            )
            against[name] = {"p_at_1_gain": round(pair.mean, 5), "ci95": [round(pair.low, 5), round(pair.high, 5)]}
    table = {
        "published": published,
        "n": len(posts),
        "hashtags": len(bundle.hashtags),
        "hashtags_in_map": len(frequent),
        "map_posts": min(len(posts), AP_POSTS),
        "published_against": against,
        "per_expert": per_expert(bundle, scores, expert_N, tags, resamples),
        "unity": unity(context, bundle, posts, use_N, expert_N, device),
        "rows": rows,
    }
    (folder / "table.json").write_text(json.dumps(table, indent=1))
    best = {row["name"]: row["p_at_1"] for row in rows}
    return Written({"published": published, "n": len(posts), "p_at_1": best})


def _inputs(context: Context, key: str | None) -> dict[str, str]:
    found = {"mixture": context.version("mixture"), "splits": context.version("splits")}
    if context.study.evaluation.controls:
        found |= {name: context.version(name) for name in ("trunk_same_budget", "random_decoder")}
        for name in ("random_expert", "separate_expert"):
            found |= {f"{name} {k}": context.version(name, k) for k in context.experts}
    return found


def _settings(study: Study) -> Any:
    return study.evaluation.model_dump()


EVALUATION = Stage(
    name="evaluation",
    keys=None,
    code="2",
    reads=("mixture", "trunk_same_budget", "random_expert", "random_decoder", "separate_expert", "posts", "splits"),
    settings=_settings,
    inputs=_inputs,
    make=_make,
)
