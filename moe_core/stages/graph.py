"""All stages, each after those it reads."""

from moe_core.engine.stage import Graph
from moe_core.stages.data.stages import POSTS, SPLITS, VOCABULARY
from moe_core.stages.evaluation.evaluation import EVALUATION
from moe_core.stages.evaluation.report import REPORT
from moe_core.stages.experts.controls import DENSE_SAME_COST, TRUNK_SAME_BUDGET
from moe_core.stages.experts.decoder import RANDOM_DECODER, SHARED_DECODER
from moe_core.stages.experts.experts import EXPERT, RANDOM_EXPERT, SEPARATE_EXPERT
from moe_core.stages.experts.joint import JOINT_EXPERTS, RANDOM_JOINT_EXPERTS
from moe_core.stages.gate.partition import PARTITION
from moe_core.stages.mixture.bundle import MIXTURE
from moe_core.stages.mixture.embeddings import EMBEDDINGS
from moe_core.stages.mixture.promote import PUBLISHED
from moe_core.stages.trunk.stages import TRUNK, TRUNK_FEATURES

GRAPH = Graph(
    (
        POSTS,
        SPLITS,
        VOCABULARY,
        TRUNK,
        TRUNK_FEATURES,
        PARTITION,
        JOINT_EXPERTS,
        RANDOM_JOINT_EXPERTS,
        EXPERT,
        RANDOM_EXPERT,
        SEPARATE_EXPERT,
        TRUNK_SAME_BUDGET,
        DENSE_SAME_COST,
        SHARED_DECODER,
        RANDOM_DECODER,
        MIXTURE,
        PUBLISHED,
        EVALUATION,
        EMBEDDINGS,
        REPORT,
    ),
    # what one expert reads of a partition has a name of its own for Dagster
    aliases={"expert_shard": "partition", "random_shard": "partition"},
)
