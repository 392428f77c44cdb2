import json
from typing import Any

import dagster as dg

from assets.materialize import Work, asset_of, materialize
from moe_core.engine.context import Context
from moe_core.store.artifact import Artifact

CHECK = dg.AssetCheckSpec("no_picture_in_two_splits", asset="splits", blocking=True)


@asset_of("splits", group_name="data", kinds={"faiss", "polars"}, check_specs=[CHECK])
def splits(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """The split of every post, with near-duplicates of all shards on one side; leaks of given splits by name."""
    return materialize(context, config, _look)


def _look(work: Context, artifact: Artifact) -> tuple[dict[str, Any], list[dg.AssetCheckResult]]:
    from moe_core.stages.data.splits import check

    found = check(work)
    said = (
        f"{found.given} pictures lie in several splits as the source gives them: leaks.parquet names them, "
        'data.leaks = "remove" drops them'
    )
    if not found.good:
        said = "; ".join([json.dumps(found.violations), *found.examples])
    checked = dg.AssetCheckResult(
        check_name=CHECK.name,
        passed=found.good and not found.given,
        severity=dg.AssetCheckSeverity.WARN if found.good else dg.AssetCheckSeverity.ERROR,  # a warning blocks nothing
        description=said if found.given or not found.good else None,
        metadata={
            "violations": dg.MetadataValue.json(found.violations),
            "given by the source": found.given,
            "held-out posts searched": found.searched,
        },
    )
    return {"snapshot": None}, [checked]  # with the lineage
