import dagster as dg

from assets.materialise import Work, asset_of, materialise


@asset_of("vocabulary", group_name="data", kinds={"polars"})
def vocabulary(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """The hashtags that are predicted, by number of posts and of distinct users; what was dropped, and why."""
    return materialise(context, config)
