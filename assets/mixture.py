"""What Dagster shows of `mixture` and of `published`."""

from pathlib import Path
from typing import Any

import dagster as dg

from assets.gains import who_answers
from assets.showing import Shown, plot_of_bars, table
from assets.study import key_of
from moe_core.engine.context import Context
from moe_core.serving.publication import read_log
from moe_core.store.artifact import Artifact


def look(work: Context, artifact: Artifact, instance: dg.DagsterInstance) -> Shown:
    for key in artifact.metadata["published"]:
        observation = dg.AssetObservation(key_of("expert"), partition=key, metadata=who_answers(artifact, key))
        instance.report_runless_asset_event(observation)
    gains = artifact.metadata.get("validation_gain", {})  # none without validation posts
    answers = {key: "expert" if good else "trunk" for key, good in artifact.metadata["published"].items()}
    rows = [(key, f"{gains[key]:+.4f}" if key in gains else "", answer) for key, answer in answers.items()]
    name = "gain of each expert on validation posts (cross-entropy)"
    answered = table(("expert", "gain in cross-entropy", "answers"), rows)
    plot = plot_of_bars(list(gains.items()), name, "{:+.4f}")
    return Shown(plot | {"published": answered, "validation gain": None})


NEWEST = dg.AssetCheckSpec(
    "newest_is_published",
    asset="published",
    description="Whether the mixture of the study as it is now is the one that is published; where not, why.",
)
HISTORY = 10  # decisions shown


def look_published(work: Context, artifact: Artifact, instance: dg.DagsterInstance) -> Shown:
    metadata, check = decided(work.root, artifact.inputs["mixture"])
    return Shown(metadata | {"publish": None}, (check,))


def decided(root: Path, mixture: str) -> tuple[dict[str, Any], dg.AssetCheckResult]:
    """What is published, why `mixture` is or is not, and the latest decisions; and the check."""
    log = read_log(root)
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
