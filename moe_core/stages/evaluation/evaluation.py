"""evaluation: the mixture against its controls on held-out posts, every figure with its interval and its n.

`rows` describes the rows of the table, `predictions` computes their answers, `score` the measures, `confidence` what
the published answer's probabilities are worth, `hashtags` each hashtag and the bands of them, `costs`,
`embedding_agreement` and `transfer` the rest of the table.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from moe_core.advice import measure_for, warnings
from moe_core.engine.context import Context
from moe_core.errors import TooFewPosts
from moe_core.evaluation.hashtag_table import HASHTAGS_FILE
from moe_core.evaluation.metrics import tag_statistics
from moe_core.serving.bundle import Bundle
from moe_core.stages import reading
from moe_core.stages.data.statistics import seen
from moe_core.stages.evaluation.confidence import Confidence
from moe_core.stages.evaluation.costs import Costs
from moe_core.stages.evaluation.embedding_agreement import embedding_agreement
from moe_core.stages.evaluation.hashtags import Hashtags
from moe_core.stages.evaluation.predictions import open_controls
from moe_core.stages.evaluation.rows import ROWS
from moe_core.stages.evaluation.score import gains_over_rows, per_expert, row_of, score
from moe_core.stages.evaluation.transfer import transfer
from moe_core.stages.reading import read_routed_posts
from moe_core.stages.training.device import device_and_threads
from moe_core.store.artifact import Spec, StageOutput


def make(context: Context, spec: Spec, folder: Path) -> StageOutput:
    device = device_and_threads(context.study, parallel=False, hashtags=len(reading.vocabulary(context).hashtags))
    bundle = Bundle(context.need("mixture"))
    test = read_routed_posts(context, "test")
    if not len(test):
        raise TooFewPosts("no test post carries a hashtag of the vocabulary: raise data.test, or give a split column")
    controls = open_controls(context, bundle, device)
    scores, tags, confidence, hashtags = score(context, bundle, controls, test, device)
    costs, resamples = Costs(context, bundle), context.study.evaluation.bootstrap
    bands, map_R1 = _hashtags(context, folder, bundle, hashtags, confidence)
    ranked = len(hashtags.sample)
    rows = [
        row_of(context, name, scores[name], len(test), map_R1[name], ranked) | ROWS[name].cost(costs) for name in scores
    ]
    gains = gains_over_rows(bundle.answer, scores, resamples, map_R1)
    tags_a_post, top_share = tag_statistics(test.posts.tags_T, len(test))
    table = {
        "published": bundle.answer,
        "n": len(test),
        "tags_a_post": round(tags_a_post, 3),
        "top_share": round(top_share, 4),
        "measure": measure_for(tags_a_post, top_share, bundle.loss, context.study.publish.measure),
        "warnings": warnings(seen(context), context.study),
        "hashtags": len(bundle.hashtags),
        "hashtags_in_map": hashtags.ranked_hashtags,
        "map_posts": ranked,
        "router_weight": {"mixture_top1_router": bundle.router_weight}
        | {f"{row}_router": c.router_weight for row, c in controls.items() if c.router_weight is not None},
        "temperature": bundle.temperature,
        "published_gains": gains,
        "bands": bands,
        "per_expert": per_expert(bundle, scores, test.expert_N, tags, resamples),
        "embedding_agreement": embedding_agreement(context, bundle, controls, test, device),
        "transfer": transfer(context, bundle, controls, test, device),
        **confidence.as_json(resamples),
        "untrained": [row.title for row in ROWS.values() if row.role == "same_cost" and row.name not in scores],
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
            "ece": {"before": table["calibration"]["ece"], "after": table["calibration"]["ece_scaled"]},
        }
    )


def _hashtags(
    context: Context, folder: Path, bundle: Bundle, hashtags: Hashtags, confidence: Confidence
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(`bands` of table.json, mAP of each row and of resamples); writes hashtags.parquet, a row for each hashtag."""
    vocabulary = pl.read_parquet(context.need("vocabulary").file("hashtags.parquet"), glob=False)
    training_V = vocabulary.sort("id")["posts"].to_numpy().astype(np.int64)
    bands, ap, map_R1 = hashtags.measure(training_V, context.study.evaluation.bootstrap)
    frame = hashtags.frame(bundle.hashtags, training_V, ap, confidence.thresholds())
    frame.write_parquet(folder / HASHTAGS_FILE)
    return bands, map_R1
