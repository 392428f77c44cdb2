"""What Dagster shows of `vocabulary`."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from assets.showing import Shown, cell, markdown
from moe_core.engine.context import Context
from moe_core.stages.data.statistics import warnings_of
from moe_core.store.artifact import Artifact

SUFFICE = dg.AssetCheckSpec(
    "posts_suffice",
    asset="vocabulary",
    description="Whether posts and tags suit the study's experts, loss and validation share; where not, what to set.",
)


def look(work: Context, artifact: Artifact, instance: dg.DagsterInstance) -> Shown:
    metadata, doubts = artifact.metadata, warnings_of(work)
    check = dg.AssetCheckResult(
        check_name=SUFFICE.name,
        passed=not doubts,
        severity=dg.AssetCheckSeverity.WARN,  # a warning blocks nothing
        description="; ".join(doubts) or None,
    )
    shown = {
        "kept": dg.MetadataValue.md(kept_table(metadata)),
        "left out": dg.MetadataValue.md(dropped_table(metadata)),
        "most frequent": None,
        "dropped by reason": None,
    }
    return Shown(shown, (check,))


def kept_table(metadata: Mapping[str, Any]) -> str:
    """Markdown: the most frequent hashtags that stayed."""
    rows = [(cell(tag), f"{posts:,}", f"{users:,}") for tag, posts, users in metadata["kept_examples"]]
    return markdown(("hashtag", "posts", "users"), rows)


def dropped_table(metadata: Mapping[str, Any]) -> str:
    """Markdown: how many tags left for each reason, and the most frequent of them with their posts and users."""
    rows = []
    for reason, count in metadata["dropped_by_reason"].items():
        some = [f"{cell(tag)} ({posts:,}, {users:,})" for tag, posts, users in metadata["dropped_examples"][reason]]
        rows.append((cell(reason), f"{count:,}", ", ".join(some)))
    return markdown(("reason", "tags", "most frequent (posts, users)"), rows)
