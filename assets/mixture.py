from typing import Any

import dagster as dg

from assets.materialise import Work, asset_of, materialise
from assets.showing import plot_of_bars, table
from moe_core.stages.context import Context
from moe_core.store import Artefact


@asset_of("shared_decoder", group_name="mixture", kinds={"pytorch"})
def shared_decoder(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """One last layer for all the experts: one embedding space. Needs every expert of the current partition."""
    return materialise(context, config)


@asset_of("mixture", group_name="mixture", kinds={"pytorch"})
def mixture(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """The bundle: router, gate, experts, decoder and vocabulary under one manifest; `hardmoe predict` reads it."""
    return materialise(context, config, _look)


def _look(_: Context, artefact: Artefact) -> tuple[dict[str, Any], list[dg.AssetCheckResult]]:
    said = artefact.metadata
    gains = said.get("validation_gain", {})  # none without validation posts
    answers = {key: "expert" if good else "trunk" for key, good in said["published"].items()}
    rows = [(key, f"{gains[key]:+.4f}" if key in gains else "", answer) for key, answer in answers.items()]
    name = "gain of each expert on validation posts (cross-entropy)"
    return plot_of_bars(list(gains.items()), name, "{:+.4f}") | {
        "published": table(("expert", "gain in cross-entropy", "answers"), rows),
        "validation gain": None,
    }, []


@asset_of("embeddings", group_name="results", kinds={"lance"})
def embeddings(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """Every post of a shard in the one embedding space, with a vector index where posts are many."""
    return materialise(context, config)
