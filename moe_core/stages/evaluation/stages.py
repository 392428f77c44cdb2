"""What the comparison table and the report depend on."""

from typing import Any

from moe_core.engine.planner import Planner
from moe_core.engine.stage import Ref, Stage
from moe_core.settings import Study
from moe_core.stages.evaluation.labels import hash_of_labels
from moe_core.stages.evaluation.rows import CONTROL_STAGES, controls_of


def _evaluation_inputs(planner: Planner, key: str | None) -> dict[str, Ref | str]:
    """The user's file of labels counts by its content."""
    inputs: dict[str, Ref | str] = {"mixture": Ref("mixture"), "splits": Ref("splits")}
    if planner.state.study.evaluation.labels_file:
        inputs["labels"] = hash_of_labels(planner.state.study.evaluation)
    for networks in controls_of(planner.graph).values():
        for stage in networks.stages:
            inputs |= {f"{stage} {k}" if k else stage: Ref(stage, k) for k in planner.keys(stage)}
    return inputs


def _report_inputs(planner: Planner, key: str | None) -> dict[str, Ref]:
    """With the pilot where one was made: no report waits for it."""
    pilot = ("pilot",) if planner.find("pilot") else ()
    return {name: Ref(name) for name in ("evaluation", "partition", *pilot)}


def _evaluation_settings(study: Study) -> Any:
    settings = study.evaluation.counted() | {"topk": min(study.evaluation.topk, study.partition.experts)}
    evaluation = settings if study.evaluation.controls else settings | {"dense_control": False}
    return {"evaluation": evaluation, "publish": study.publish.model_dump(include={"measure"})}


EVALUATION = Stage(
    name="evaluation",
    code="9",
    reads=("mixture", *CONTROL_STAGES, "posts", "splits"),
    settings=_evaluation_settings,
    inputs=_evaluation_inputs,
    make="moe_core.stages.evaluation.evaluation:make",
    description="The mixture against its controls on held-out posts, each figure with a 95 % bootstrap interval.",
)

REPORT = Stage(
    name="report",
    code="5",
    reads=("evaluation", "partition"),
    settings=lambda study: {},
    inputs=_report_inputs,
    make="moe_core.stages.evaluation.report:make",
    description="One self-contained HTML page: the table, and what each expert sees. `hardmoe report --open` opens it.",
    uses_gpu=False,
    post_ids="unknown",  # pictures
)
