"""What Dagster shows of `posts`, `splits` and `vocabulary`."""

import json
from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

import dagster as dg

from assets.showing import Shown, cell, markdown, table
from moe_core.engine.context import Context
from moe_core.stages.data.rows import stored_counts
from moe_core.stages.data.statistics import warnings_of
from moe_core.store.artifact import Artifact
from moe_core.tables.lance_tags import lance_tag_of
from moe_core.tables.location import tables_of

CONSERVED = dg.AssetCheckSpec(
    "conserved",
    asset="posts",
    blocking=True,
    description="Rows in posts.lance and rejects.lance, counted at the committed versions, are all that was read.",
)


def look_posts(work: Context, artifact: Artifact, instance: dg.DagsterInstance) -> Shown:
    metadata = artifact.metadata
    assert artifact.key is not None
    lance_tag = lance_tag_of(artifact.key, artifact.version)  # version numbers may be gone
    kept, refused = stored_counts(tables_of(work.store), artifact.key, lance_tag, lance_tag)
    counts = {"read": metadata["read"], "rows in posts.lance": kept, "rows in rejects.lance": refused}
    conserved = (kept, refused) == (metadata["accepted"], metadata["rejected"]) and kept + refused == metadata["read"]
    check = dg.AssetCheckResult(
        passed=conserved,
        check_name=CONSERVED.name,
        severity=dg.AssetCheckSeverity.ERROR,
        description=f"{metadata['read']} read, {kept} accepted + {refused} rejected are stored",
        metadata=counts,
    )
    return Shown({"rejects by reason": _rejects(metadata), "reasons": None}, (check,))


def _rejects(metadata: Any) -> dg.MetadataValue:
    """Rejects by reason, most frequent first, with a few examples each.

    Rows are named by their place in the shard alone: Dagster keeps what it is told, and a detail may quote an id that a
    takedown must not leave here. rejects.lance has both.
    """
    if not metadata["reasons"]:
        return dg.MetadataValue.md(f"None of {metadata['read']} rows were rejected.")
    rows = []
    for reason, count in sorted(metadata["reasons"].items(), key=lambda pair: (-pair[1], pair[0])):
        examples = "; ".join(f"row {row}" for row in metadata["examples"].get(reason, ()))
        rows.append((reason, count, examples))
    return table(("reason", "rows", "for example"), rows)


LEAKS = dg.AssetCheckSpec("no_picture_in_two_splits", asset="splits", blocking=True)


def look_splits(work: Context, artifact: Artifact, instance: dg.DagsterInstance) -> Shown:
    found = resolve_name("moe_core.stages.data.split_check:check")(work)  # it loads polars
    description = (
        f"{found.given} pictures lie in several splits as the source gives them: leaks.parquet names them, "
        'data.leaks = "remove" drops them'
    )
    if not found.good:
        description = "; ".join([json.dumps(found.violations), *found.examples])
    checked = dg.AssetCheckResult(
        check_name=LEAKS.name,
        passed=found.good and not found.given,
        severity=dg.AssetCheckSeverity.WARN if found.good else dg.AssetCheckSeverity.ERROR,  # a warning blocks nothing
        description=description if found.given or not found.good else None,
        metadata={
            "violations": dg.MetadataValue.json(found.violations),
            "given by the source": found.given,
            "held-out posts searched": found.searched,
        },
    )
    return Shown({"snapshot": None}, (checked,))  # with the lineage


SUFFICE = dg.AssetCheckSpec(
    "posts_suffice",
    asset="vocabulary",
    description="Whether posts and tags suit the study's experts, loss and validation share; where not, what to set.",
)


def look_vocabulary(work: Context, artifact: Artifact, instance: dg.DagsterInstance) -> Shown:
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
