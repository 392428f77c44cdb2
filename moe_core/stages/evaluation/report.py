"""report: one self-contained HTML page with the table, what each expert sees and gains, curves and lineage."""

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

from moe_core.data.images import webp
from moe_core.engine.context import Context
from moe_core.evaluation.hashtag_table import most_tested
from moe_core.evaluation.page import HASHTAGS, render
from moe_core.stages.training.cost import training_cost
from moe_core.stages.training.log import log_of
from moe_core.store.artifact import Artifact, Spec, StageOutput
from moe_core.store.hashing import content_hash

SHEETS = ("typical", "ambiguous")
PICTURES_OF = 64  # experts at most: their pictures take some 2 MB of the page


def make(context: Context, spec: Spec, folder: Path) -> StageOutput:
    evaluation, partition = context.need("evaluation"), context.need("partition")
    table = json.loads(evaluation.file("table.json").read_text("utf-8"))
    posts = [context.need("posts", shard.key).metadata for shard in context.shards]
    reasons = Counter[str]()
    for shard in posts:
        reasons.update(shard["reasons"])
    shown: dict[str, Any] = {
        "table": table,
        "posts": {name: sum(shard[name] for shard in posts) for name in ("read", "accepted", "rejected")},
        "reasons": dict(sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))),
        "vocabulary": dict(context.need("vocabulary").metadata),
        "partition": dict(partition.metadata),
        "experts": _experts(partition, table["per_expert"]),
        "hashtags": most_tested(evaluation, HASHTAGS),
        "lineage": _lineage(context),
    }
    networks = {"trunk": context.need("trunk"), **{k: context.need("expert", k) for k in context.experts}}
    logs = {name: log_of(artifact) for name, artifact in networks.items()}
    pilot = context.need("pilot") if "pilot" in spec.inputs else None
    found = json.loads(pilot.file("pilot.json").read_text("utf-8")) if pilot else None
    page = render(context.study, logs=logs, spending=training_cost(context), pilot=found, **shown)
    shown |= {"pilot": pilot.content_hash} if pilot else {}
    (folder / "report.html").write_text(page, "utf-8")
    # logs and costs are left out of its content: two machines take different times to the same result
    return StageOutput({"bytes": len(page.encode())}, content={"page": content_hash(shown)})


def _experts(partition: Artifact, per_expert: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each expert with its size, hashtags, row of the evaluation, and contact sheets in base64."""
    experts = []
    for number, (size, row) in enumerate(zip(partition.metadata["sizes"], per_expert, strict=True)):
        key = row["expert"]
        names = {name: f"sheets/{key}.{name}.png" for name in SHEETS} if number < PICTURES_OF else {}
        sheets = {
            name: base64.b64encode(webp(partition.file(file).read_bytes())).decode()
            for name, file in names.items()
            if file in partition.files
        }
        hashtags = partition.metadata["hashtags"][key]
        experts.append({"key": key, "size": size, "hashtags": hashtags, "sheets": sheets} | row)
    return experts


def _lineage(context: Context) -> list[tuple[str, str, str]]:
    """(artifact, version, content hash) of all that the page is built from, in the graph's order."""
    planner = context.planner
    above = planner.graph.above["report"]
    needed = [planner.need(name, key) for name in planner.graph if name in above for key in planner.keys(name)]
    return [(a.spec.name, a.version, a.content_hash) for a in needed]
