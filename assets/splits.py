import json

import dagster as dg

from assets.materialise import Work, asset_of, materialise
from assets.study import root, study
from moe_core.stages.context import Context

CHECK = "no_picture_in_two_splits"


@asset_of(
    "splits",
    group_name="data",
    kinds={"faiss", "polars"},
    check_specs=[dg.AssetCheckSpec(CHECK, asset="splits", blocking=True)],
)
def splits(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """The split of every post, with near-duplicates of all shards on one side; leaks of given splits by name."""
    from moe_core.stages.splits import check

    result = materialise(context, config)
    work = Context(study(), root())
    found = check(work)
    said = (
        f"{found.given} pictures lie in several splits as the source gives them: leaks.parquet names them, data.leaks"
    )
    if not found.good:
        work.store.remove(work.need("splits"))  # what failed must not be taken for fresh by the next run
        said = "; ".join([json.dumps(found.violations), *found.examples])
    checked = dg.AssetCheckResult(
        check_name=CHECK,
        passed=found.good and not found.given,
        severity=dg.AssetCheckSeverity.WARN if found.good else dg.AssetCheckSeverity.ERROR,  # a warning blocks nothing
        description=said if found.given or not found.good else None,
        metadata={
            "violations": dg.MetadataValue.json(found.violations),
            "given by the source": found.given,
            "held-out posts searched": found.searched,
        },
    )
    return result._replace(check_results=[checked])
