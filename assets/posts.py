"""What Dagster shows of `posts`."""

from typing import Any

import dagster as dg

from assets.showing import Shown, table
from moe_core.engine.context import Context
from moe_core.stages.data.rows import stored_counts
from moe_core.store.artifact import Artifact
from moe_core.tables.lance_tags import lance_tag_of

CONSERVED = dg.AssetCheckSpec(
    "conserved",
    asset="posts",
    blocking=True,
    description="Rows in posts.lance and rejects.lance, counted at the committed versions, are all that was read.",
)


def look(work: Context, artifact: Artifact, instance: dg.DagsterInstance) -> Shown:
    metadata = artifact.metadata
    assert artifact.key is not None
    lance_tag = lance_tag_of(artifact.key, artifact.version)  # version numbers may be gone
    kept, refused = stored_counts(work.root, artifact.key, lance_tag, lance_tag)
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
