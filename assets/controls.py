import dagster as dg

from assets.materialize import Work, asset_of, materialize


@asset_of("trunk_same_budget", group_name="controls", kinds={"pytorch"})
def trunk_same_budget(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """Control: the trunk trained on for as many images as all the experts together."""
    return materialize(context, config)


@asset_of("random_expert", group_name="controls", kinds={"pytorch"})
def random_expert(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """Control: an expert of a random partition of the same sizes; all else as for `expert`."""
    return materialize(context, config)


@asset_of("separate_expert", group_name="controls", kinds={"pytorch"})
def separate_expert(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """Control: an expert with a decoder of its own; all else as for `expert`."""
    return materialize(context, config)


@asset_of("random_decoder", group_name="controls", kinds={"pytorch"})
def random_decoder(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """Control: the shared decoder of the random partition's experts, made as `shared_decoder` is."""
    return materialize(context, config)


@asset_of("random_joint_experts", group_name="controls", kinds={"pytorch"})
def random_joint_experts(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """Control: the experts of the random partition and their decoder, trained together as `joint_experts` are."""
    return materialize(context, config)


@asset_of("dense_same_cost", group_name="controls", kinds={"pytorch"})
def dense_same_cost(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """Control: one wider network that costs an image and in training what the mixture costs."""
    return materialize(context, config)
