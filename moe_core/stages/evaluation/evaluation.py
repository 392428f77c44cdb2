"""evaluation: the mixture against its controls on held-out posts, every figure with its interval and its n.

`asked` has the posts, `choices` what validation posts choose, `answers` what each row of the table answers, `scoring`
the measures, `costs` and `unity` the rest of the table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moe_core.engine.context import Context, device_and_threads
from moe_core.engine.stage import Stage
from moe_core.errors import TooFewPosts
from moe_core.settings import Study
from moe_core.stages import reading
from moe_core.stages.data.statistics import seen
from moe_core.stages.evaluation.costs import costs_of
from moe_core.stages.evaluation.embedding_agreement import unity
from moe_core.stages.evaluation.rows import ONE_NETWORK, controls_of, one_network_controls
from moe_core.stages.evaluation.score import AP_POSTS, against, frequent_tags, per_expert, row_of, score, tags_of
from moe_core.stages.mixture.routed_posts import read_routed_posts
from moe_core.store.artifact import StageOutput


def _make(context: Context, key: str | None, folder: Path) -> StageOutput:
    from moe_core.advice import measure_for, warnings
    from moe_core.serving.bundle import Bundle

    device = device_and_threads(context.study, parallel=False, hashtags=len(reading.vocabulary(context).hashtags))
    bundle = Bundle(context.need("mixture").path)
    test = read_routed_posts(context, "test")
    if not len(test):
        raise TooFewPosts("no test post carries a hashtag of the vocabulary: raise data.test, or give a split column")
    controls = controls_of(context, bundle, device)
    scores, tags = score(context, bundle, controls, test, device)
    frequent = frequent_tags(test.posts, len(bundle.hashtags))
    costs, resamples = costs_of(context, bundle), context.study.evaluation.bootstrap
    rows = [row_of(context, name, scores[name], test.posts, frequent) | costs[name] for name in scores]
    gains = against(bundle.answer, scores, resamples)
    tags_a_post, top_share = tags_of(test.posts)
    table = {
        "published": bundle.answer,
        "n": len(test),
        "tags_a_post": round(tags_a_post, 3),
        "top_share": round(top_share, 4),
        "measure": measure_for(tags_a_post, top_share),
        "warnings": warnings(seen(context), context.study),
        "hashtags": len(bundle.hashtags),
        "hashtags_in_map": len(frequent),
        "map_posts": min(len(test), AP_POSTS),
        "router_weight": {"mixture_top1_router": bundle.router_weight}
        | {f"{row}_router": routed.share for row, routed in controls.routed.items()},
        "temperature": bundle.temperature,
        "published_gains": gains,
        "per_expert": per_expert(bundle, scores, test.expert_N, tags, resamples),
        "unity": unity(context, bundle, test, device),
        "rows": rows,
    }
    (folder / "table.json").write_text(json.dumps(table, indent=1))
    return StageOutput(
        {
            "published": bundle.answer,
            "n": len(test),
            "measure": table["measure"],
            "p_at_1": {row["name"]: row["p_at_1"] for row in rows},
            "published_gains": gains,
        }
    )


def _inputs(context: Context, key: str | None) -> dict[str, str]:
    found = {"mixture": context.version("mixture"), "splits": context.version("splits")}
    if context.study.evaluation.controls:
        found |= {name: context.version(name) for name in (*one_network_controls(context.study), "random_decoder")}
        for name in ("random_expert", "separate_expert"):
            found |= {f"{name} {k}": context.version(name, k) for k in context.experts}
    return found


def _settings(study: Study) -> Any:
    found = study.evaluation.model_dump() | {"topk": min(study.evaluation.topk, study.partition.experts)}
    return found if study.evaluation.controls else found | {"dense_control": False}


EVALUATION = Stage(
    name="evaluation",
    keys=None,
    code="5",
    reads=("mixture", *ONE_NETWORK, "random_expert", "random_decoder", "separate_expert", "posts", "splits"),
    settings=_settings,
    inputs=_inputs,
    make=_make,
)
