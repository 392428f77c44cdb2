import dagster as dg

from assets.materialise import Work, asset_of, materialise


@asset_of("posts", group_name="data", kinds={"lance", "pillow"})
def posts(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """One shard of the source: accepted posts in posts.lance, rejected ones with a reason in rejects.lance."""
    return materialise(context, config)
