"""What Dagster shows of `expert`, `mixture` and `published`: who answers, gains, hashtags, decisions."""

import json
from collections.abc import Mapping
from typing import Any

import dagster as dg

from assets.partition import seen
from assets.showing import Shown, look, plot_of_bars, table
from assets.study import key_of
from moe_core.engine.context import Context
from moe_core.serving.publication import read_log
from moe_core.store.artifact import Artifact
from moe_core.store.documents import Documents


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


def look_expert(work: Context, artifact: Artifact, instance: dg.DagsterInstance) -> Shown:
    key = str(artifact.key)
    return Shown(seen(work.need("partition"), key) | _known(work, artifact) | look(f"posts?expert={key}"))


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


def look_mixture(work: Context, artifact: Artifact, instance: dg.DagsterInstance) -> Shown:
    for key in artifact.metadata["published"]:
        observation = dg.AssetObservation(key_of("expert"), partition=key, metadata=who_answers(artifact, key))
        instance.report_runless_asset_event(observation)
    gains = artifact.metadata.get("validation_gain", {})  # none without validation posts
    answers = {key: "expert" if good else "trunk" for key, good in artifact.metadata["published"].items()}
    rows = [(key, f"{gains[key]:+.4f}" if key in gains else "", answer) for key, answer in answers.items()]
    name = "gain of each expert on validation posts (cross-entropy)"
    answered = table(("expert", "gain in cross-entropy", "answers"), rows)
    plot = plot_of_bars(list(gains.items()), name, "{:+.4f}")
    return Shown(plot | {"published": answered, "validation gain": None} | look("clusters"))


NEWEST = dg.AssetCheckSpec(
    "newest_is_published",
    asset="published",
    description="Whether the mixture of the study as it is now is the one that is published; where not, why.",
)
HISTORY = 10  # decisions shown


def look_published(work: Context, artifact: Artifact, instance: dg.DagsterInstance) -> Shown:
    metadata, check = decided(work.store.documents, artifact.inputs["mixture"])
    return Shown(metadata | {"publish": None}, (check,))


def decided(documents: Documents, mixture: str) -> tuple[dict[str, Any], dg.AssetCheckResult]:
    """What is published, why `mixture` is or is not, and the latest decisions; and the check."""
    log = read_log(documents)
    last = log.last(mixture)
    rows = [(d.at, d.action, d.mixture, d.published, d.by, d.why) for d in reversed(log.history[-HISTORY:])]
    newest, why = log.published == mixture, last.why if last else "not decided yet"
    metadata = {
        "published": log.published or "nothing",
        "why": why if newest else f"not published: {why}",
        "history": table(("at", "what", "mixture", "published then", "by", "why"), rows),
    }
    check = dg.AssetCheckResult(
        check_name=NEWEST.name,
        passed=newest,
        severity=dg.AssetCheckSeverity.WARN,
        description=str(metadata["why"]),
        metadata={"published": str(metadata["published"]), "newest": mixture},
    )
    return metadata, check
