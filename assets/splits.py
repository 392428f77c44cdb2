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
    if not found.good:
        work.store.remove(work.need("splits"))  # what failed must not be taken for fresh by the next run
    severity = dg.AssetCheckSeverity.WARN if found.good else dg.AssetCheckSeverity.ERROR
    said = f"{found.given} pictures lie in several splits, as the source gives them: see leaks.parquet, data.leaks"
    checked = dg.AssetCheckResult(
        check_name=CHECK,
        passed=found.good and not found.given,
        severity=severity,
        description=said if found.good else "; ".join(found.examples) or None,
        metadata={
            "violations": dg.MetadataValue.json(found.violations),
            "given by the source": found.given,
            "held-out posts searched": found.searched,
        },
    )
    return result._replace(check_results=[checked])
