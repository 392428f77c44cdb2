"""Results of mixture and evaluation for one expert, shown with it in Dagster: who answers, gains, hashtags."""

import json
from collections.abc import Mapping
from typing import Any

import dagster as dg

from assets.partition import seen
from assets.showing import Shown, table
from moe_core.engine.context import Context
from moe_core.store.artifact import Artifact


def who_answers(mixture: Artifact, key: str) -> dict[str, Any]:
    """Which network answers the images of a cluster in a mixture: its expert, or the trunk."""
    gain = mixture.metadata.get("validation_gain", {}).get(key)
    why = (
        "no validation post is routed to it"
        if gain is None
        else f"gain in cross-entropy on its validation posts: {gain:+.4f}"
    )
    answer = "this expert" if mixture.metadata["published"][key] else "the trunk: this expert is not published"
    return {"its images are answered by": f"{answer} ({why})"}


def of_expert(row: Mapping[str, Any]) -> dict[str, Any]:
    """Results on one expert's test posts, by its row of the evaluation; empty where it has none."""
    if not row["n"]:
        return {}
    low, high = row["p_at_1_gain_ci95"]
    figures = [
        ("test posts", f"{row['n']:,}"),
        ("P@1 of the trunk", f"{row['trunk_p_at_1']:.3f}"),
        ("P@1 of the mixture", f"{row['mixture_p_at_1']:.3f}"),
        ("gain, 95 %", f"{low:+.3f} to {high:+.3f}"),
    ]
    changed = [
        (tag["tag"], tag["n"], tag["trunk"], tag["mixture"]) for name in ("lifted", "lowered") for tag in row[name]
    ]
    return {
        "P@1 gain over the trunk": row["p_at_1_gain"],
        "on its test posts": table((" ", "of this expert"), figures),
        "hashtags lifted and lowered": table(
            ("hashtag", "test posts", "found by the trunk", "by the mixture"), changed
        ),
    }


def look(work: Context, artifact: Artifact, instance: dg.DagsterInstance) -> Shown:
    return Shown(seen(work.need("partition"), str(artifact.key)) | _known(work, artifact))


def _known(work: Context, expert: Artifact) -> dict[str, Any]:
    """Results of the newest mixture with exactly this expert, and of its newest evaluation; empty before there is one.

    A materialization that finds its expert in the store takes the place of earlier ones in the UI: it shows this again.
    """
    key = str(expert.key)
    mixture = _newest(work, "mixture", key, expert.version)
    if mixture is None:
        return {}
    evaluation = _newest(work, "evaluation", "mixture", mixture.version)
    rows = json.loads(evaluation.file("table.json").read_text("utf-8"))["per_expert"] if evaluation else []
    row = next((row for row in rows if row["expert"] == key), {"n": 0})
    return who_answers(mixture, key) | of_expert(row)


def _newest(work: Context, asset: str, name: str, version: str) -> Artifact | None:
    """The last built of an asset's versions that have this version as their input `name`."""
    versions = [a for a in work.store.versions(asset, None) if a.inputs.get(name) == version]
    return max(versions, key=lambda a: a.made_at, default=None)
