import dagster as dg

from assets.materialise import Work, asset_of, materialise


@asset_of("shared_decoder", group_name="mixture", kinds={"pytorch"})
def shared_decoder(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """One last layer for all the experts: one embedding space. Needs every expert of the current partition."""
    return materialise(context, config)


@asset_of("mixture", group_name="mixture", kinds={"pytorch"})
def mixture(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """The bundle: router, gate, experts, decoder and vocabulary under one manifest; `hardmoe predict` reads it."""
    return materialise(context, config)


@asset_of("embeddings", group_name="results", kinds={"lance"})
def embeddings(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """Every post of a shard in the one embedding space, with a vector index where posts are many."""
    return materialise(context, config)
