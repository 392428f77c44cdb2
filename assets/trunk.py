import dagster as dg

from assets.materialize import Work, asset_of, materialize


@asset_of("trunk", group_name="trunk", kinds={"pytorch"})
def trunk(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """One network trained on all the posts, with its decoder: the router, and the start of every expert."""
    return materialize(context, config)


@asset_of("trunk_features", group_name="trunk", kinds={"pytorch", "lance"})
def trunk_features(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """The trunk's last hidden layer for every post of a shard."""
    return materialize(context, config)
