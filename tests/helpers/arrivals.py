"""A study of three shards: where more of them come, what is retained, and how each artifact stands."""

import numpy as np

from moe_core.data.loading import Labels
from moe_core.settings import Repartition
from moe_core.stages.gate import membership
from moe_core.stages.trunk import frozen


def shards_of(root):
    return root.parent / "source"


def weights_of(context, name="expert"):
    return {key: context.need(name, key).file("weights.safetensors") for key in context.experts}


def kept_at(share, **more):
    return {"repartition": Repartition(retrain_share=share, **more)}


def status(context):
    from pipelines.run.status import states_of

    return {(state.asset, state.key): (state.state, state.why) for state in states_of(context)}


# ---- which experts are trained again: figures to do in the head


def lines(count, arrived=""):
    """Posts p0, p1, ... with the hashtag 0 each."""
    labels = Labels(np.zeros(count, np.int64), np.arange(count + 1))
    return membership.Lines([f"p{n}" for n in range(count)], labels, arrived)


def pointer_of(context, asset):
    """The file that names the current trunk, or partition."""
    return context.store.layout.document(frozen.pointer_name(context.planner.graph, context.study, asset))
