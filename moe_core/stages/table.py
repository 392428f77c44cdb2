"""All stages, each after those it reads."""

from moe_core.stages.dense import DENSE_SAME_COST
from moe_core.stages.embeddings import EMBEDDINGS
from moe_core.stages.evaluation import EVALUATION
from moe_core.stages.experts import EXPERT, RANDOM_EXPERT, SEPARATE_EXPERT
from moe_core.stages.joint_experts import JOINT_EXPERTS, RANDOM_JOINT_EXPERTS
from moe_core.stages.mixture import MIXTURE
from moe_core.stages.partition import PARTITION
from moe_core.stages.posts import POSTS
from moe_core.stages.published import PUBLISHED
from moe_core.stages.report import REPORT
from moe_core.stages.shared_decoder import RANDOM_DECODER, SHARED_DECODER
from moe_core.stages.splits import SPLITS
from moe_core.stages.stage import Stage
from moe_core.stages.trunk import TRUNK, TRUNK_SAME_BUDGET
from moe_core.stages.trunk_features import TRUNK_FEATURES
from moe_core.stages.vocabulary import VOCABULARY

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
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
    )
}
