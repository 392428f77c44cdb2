import dagster as dg

from assets.materialise import Work, asset_of, materialise


@asset_of("expert", group_name="experts", kinds={"pytorch"})
def expert(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """One network trained on one cluster alone, against the trunk's decoder held fixed."""
    return materialise(context, config)
