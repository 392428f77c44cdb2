"""What Dagster shows of `splits`."""

import json
from pkgutil import resolve_name

import dagster as dg

from assets.showing import Shown
from moe_core.engine.context import Context
from moe_core.store.artifact import Artifact

CHECK = dg.AssetCheckSpec("no_picture_in_two_splits", asset="splits", blocking=True)


def look(work: Context, artifact: Artifact, instance: dg.DagsterInstance) -> Shown:
    found = resolve_name("moe_core.stages.data.split_check:check")(work)  # it loads polars
    description = (
        f"{found.given} pictures lie in several splits as the source gives them: leaks.parquet names them, "
        'data.leaks = "remove" drops them'
    )
    if not found.good:
        description = "; ".join([json.dumps(found.violations), *found.examples])
    checked = dg.AssetCheckResult(
        check_name=CHECK.name,
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
