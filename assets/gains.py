"""What mixture and evaluation find of one expert, as Dagster shows it with the expert: who answers, gains, hashtags."""

import json
from collections.abc import Mapping
from typing import Any

from assets.showing import table
from moe_core.engine.context import Context
from moe_core.store.artifact import Artifact


def who_answers(mixture: Artifact, key: str) -> dict[str, Any]:
    """Whether the expert answers its cluster's images in a mixture, or the trunk in its place."""
    gain = mixture.metadata.get("validation_gain", {}).get(key)
    why = "no validation post is its" if gain is None else f"gain in cross-entropy on its validation posts: {gain:+.4f}"
    answer = "this expert" if mixture.metadata["published"][key] else "the trunk: this expert is not published"
    return {"its images are answered by": f"{answer} ({why})"}


def of_expert(said: Mapping[str, Any]) -> dict[str, Any]:
    """Of one expert's test posts, by its row of the evaluation; nothing where it has none."""
    if not said["n"]:
        return {}
    low, high = said["p_at_1_gain_ci95"]
    figures = [
        ("test posts", f"{said['n']:,}"),
        ("P@1 of the trunk", f"{said['trunk_p_at_1']:.3f}"),
        ("P@1 of the mixture", f"{said['mixture_p_at_1']:.3f}"),
        ("gain, 95 %", f"{low:+.3f} to {high:+.3f}"),
    ]
    changed = [
        (tag["tag"], tag["n"], tag["trunk"], tag["mixture"]) for name in ("lifted", "lowered") for tag in said[name]
    ]
    return {
        "P@1 gain over the trunk": said["p_at_1_gain"],
        "on its test posts": table((" ", "of this expert"), figures),
        "hashtags lifted and lowered": table(
            ("hashtag", "test posts", "found by the trunk", "by the mixture"), changed
        ),
    }


def known(work: Context, expert: Artifact) -> dict[str, Any]:
    """What the newest mixture with exactly this expert, and its newest evaluation, found; nothing before there is one.

    A materialization that finds its expert in the store takes the place of earlier ones in the UI: it shows this again.
    """
    key = str(expert.key)
    mixture = _newest(work, "mixture", key, expert.version)
    if mixture is None:
        return {}
    evaluation = _newest(work, "evaluation", "mixture", mixture.version)
    rows = json.loads(evaluation.file("table.json").read_text("utf-8"))["per_expert"] if evaluation else []
    found = [of_expert(row) for row in rows if row["expert"] == key]
    return who_answers(mixture, key) | (found[0] if found else {})


def _newest(work: Context, asset: str, name: str, version: str) -> Artifact | None:
    """The last made of an asset's versions that have this version as their input `name`."""
    having = [a for a in work.store.versions(asset, None) if a.inputs.get(name) == version]
    return max(having, key=lambda a: a.made_at, default=None)
