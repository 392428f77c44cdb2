"""What the stages of the mixture depend on: bundle, published bundle, embeddings of all posts, what search reads."""

from typing import Any

from moe_core.engine.planner import Planner
from moe_core.engine.stage import Ref, Stage
from moe_core.search.files import POSTS_FILE, ids_of
from moe_core.settings import Study
from moe_core.stages.mixture import promotion
from moe_core.tables.vectors import ids_in


def _settings(study: Study) -> dict[str, Any]:
    evaluation: dict[str, Any] = {"temperature": study.evaluation.temperature}
    if study.evaluation.temperature == "validation":  # chosen for so many experts
        evaluation["topk"] = min(study.evaluation.topk, study.partition.experts)
    return {
        "expert": study.expert.model_dump(include={"use_trunk_where_better", "router_weight"}),
        "evaluation": evaluation,
        "network": study.network.model_dump(),
        "data": {"image_size": study.data.image_size},
    }


MIXTURE = Stage(
    name="mixture",
    code="6",
    reads=("shared_decoder", "expert", "partition", "trunk", "vocabulary"),
    settings=_settings,
    inputs=lambda planner, key: (
        {name: Ref(name) for name in ("trunk", "partition", "shared_decoder", "vocabulary")}
        | {k: Ref("expert", k) for k in planner.state.experts}
    ),
    make="moe_core.stages.mixture.bundle:make",
    description="The bundle: router, gate, experts, decoder and vocabulary under one manifest; `hardmoe predict` reads "
    "it.",
)

PUBLISHED = Stage(
    name="published",
    code="2",
    reads=("mixture", "splits", "vocabulary", "posts"),
    settings=lambda study: {"publish": study.publish.model_dump(exclude={"license"})},
    inputs=lambda planner, key: {"mixture": Ref("mixture"), "splits": Ref("splits")},
    make="moe_core.stages.mixture.comparison:make",
    description="Which mixture is answered with: a new one only if it is whole and not worse on the validation posts.",
    resolve=promotion.resolve,
    on_commit=promotion.on_commit,
)

EMBEDDINGS = Stage(
    name="embeddings",
    keys="shards",
    code="1",
    reads=("mixture", "partition", "posts"),
    settings=lambda study: {},
    inputs=lambda planner, key: {"mixture": Ref("mixture"), "posts": Ref("posts", key)},
    make="moe_core.stages.mixture.embeddings:make",
    description="Every post of a shard in the one embedding space, by its own expert, published or not.",
    post_ids=lambda artifact: ids_in(artifact.folder("embeddings.lance")),
)


def _search_inputs(planner: Planner, key: str | None) -> dict[str, Ref]:
    inputs = {f"embeddings {shard.key}": Ref("embeddings", shard.key) for shard in planner.state.shards}
    return inputs | {"mixture": Ref("mixture"), "splits": Ref("splits")}


SEARCH_INDEX = Stage(
    name="search_index",
    code="1",
    reads=("embeddings", "splits", "posts"),
    settings=lambda study: {"search": study.search.model_dump(include={"index_from", "recall"})},
    inputs=_search_inputs,
    make="moe_core.stages.mixture.search_index:make",
    description="What search reads: the vectors of all posts, in lists where posts are many, with the recall measured.",
    uses_gpu=False,
    post_ids=lambda artifact: ids_of(artifact.file(POSTS_FILE)),
)
