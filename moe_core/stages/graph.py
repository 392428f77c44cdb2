"""All stages, each after those it reads."""

from moe_core.engine.stage import Graph
from moe_core.stages.data.stages import POSTS, SPLITS, VOCABULARY
from moe_core.stages.evaluation.stages import EVALUATION, REPORT
from moe_core.stages.experts.stages import STAGES as EXPERT_STAGES
from moe_core.stages.gate.stages import PARTITION
from moe_core.stages.mixture.stages import EMBEDDINGS, MIXTURE, PUBLISHED, SEARCH_INDEX
from moe_core.stages.pilot.stages import PILOT
from moe_core.stages.trunk.stages import TRUNK, TRUNK_FEATURES

GRAPH = Graph(
    (
        POSTS,
        SPLITS,
        VOCABULARY,
        TRUNK,
        TRUNK_FEATURES,
        PARTITION,
        *EXPERT_STAGES,
        MIXTURE,
        PUBLISHED,
        PILOT,
        EVALUATION,
        EMBEDDINGS,
        SEARCH_INDEX,
        REPORT,
    ),
    # what one expert reads of a partition has a name of its own for Dagster
    aliases={"expert_shard": "partition", "random_shard": "partition"},
)
