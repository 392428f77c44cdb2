"""What is fresh, stale, missing, failed or running, and why."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.engine.context import Context
from moe_core.errors import MissingInput
from moe_core.maintenance.takedown import network_name
from moe_core.processes import alive
from moe_core.stages.gate.current_partition import goes_back
from moe_core.stages.graph import GRAPH
from moe_core.store.artifact import Artifact, Spec
from moe_core.store.hashing import content_hash
from pipelines.instance import opened
from pipelines.run.reasons import why_stale

if TYPE_CHECKING:
    import dagster as dg


@dataclass(frozen=True)
class State:
    """Of one asset partition."""

    asset: str
    key: str | None
    state: str  # fresh, stale, missing, failed or running
    why: str
    version: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def states_of(context: Context, only: str | None = None) -> list[State]:
    """Of every asset partition, or those of one asset, in the order of the graph."""
    with existing_instance(context.root) as instance:
        failed = failed_runs(instance, context.study.name)
    names = [name for name, stage in GRAPH.items() if context.study.evaluation.controls or not stage.control]
    chosen = names if only is None else [only]
    return [state_of(context, name, key, failed) for name in chosen for key in GRAPH[name].keys_of(context)]


def posts_of(context: Context) -> dict[str, Any]:
    """Posts read, accepted and rejected, with the reasons, of the shards that are ingested.

    One whose posts were forgotten since is counted as its tables are now, as it will be once it is ingested again.
    """
    total: dict[str, Any] = {"read": 0, "accepted": 0, "rejected": 0, "rejects_by_reason": {}}
    for shard in context.shards:
        artifact = context.find("posts", shard.key)
        said = artifact.metadata if artifact else _without_forgotten(context, shard.key)
        for name in ("read", "accepted", "rejected"):
            total[name] += said.get(name, 0)
        for reason, count in said.get("reasons", {}).items():
            total["rejects_by_reason"][reason] = total["rejects_by_reason"].get(reason, 0) + count
    return total


def _without_forgotten(context: Context, shard: str) -> dict[str, Any]:
    """Counts of a shard that was ingested, and differs from what is wanted in nothing but a takedown since; else {}."""
    from moe_core.tables import shards_in, values_in

    plan = context.plan("posts", shard)
    before = [
        old
        for old in context.store.versions("posts", shard)
        if old.inputs["shard"] == plan.inputs["shard"] and (old.code, content_hash(old.settings)) == _made_by(plan)
    ]
    if not before:
        return {}
    read = max(before, key=lambda old: old.made_at).metadata["read"]
    accepted = shards_in(context.root / "posts.lance").get(shard, 0)
    reasons = values_in(context.root / "rejects.lance", shard, "reason")
    reasons["forgotten"] = reasons.get("forgotten", 0) + read - accepted - sum(reasons.values())
    return {"read": read, "accepted": accepted, "rejected": read - accepted, "reasons": dict(sorted(reasons.items()))}


def _made_by(plan: Spec) -> tuple[str, str]:
    return plan.code, content_hash(plan.settings)


def state_of(context: Context, name: str, key: str | None, failed: dict[tuple[str, str | None], str]) -> State:
    """`failed` is what `failed_runs` found."""
    if _runs(context, name, key):
        return State(name, key, "running", "", "")
    old = sorted(context.store.versions(name, key), key=lambda a: a.path.stat().st_mtime)
    try:
        plan = context.plan(name, key)
    except ValueError as error:  # what it depends on is not there yet
        if old:
            why = (
                f"waits for {error.asset if error.key is None else f'{error.asset}:{error.key}'}"
                if isinstance(error, MissingInput)
                else str(error)
            )
            return State(name, key, "stale", _forgotten(context, old[-1]) + why, old[-1].version)
        return State(name, key, "missing", failed.get((name, key), ""), "")
    if context.store.find(plan):
        return State(name, key, "fresh", _kept(context, name, key), plan.version)
    if (name, key) in failed:
        return State(name, key, "failed", failed[name, key], plan.version)
    if old:
        why = _forgotten(context, old[-1]) + why_stale(context, old[-1], plan)
        return State(name, key, "stale", why, old[-1].version)
    if "forgotten" in plan.inputs:  # the artifact went with the takedown: it named a post
        return State(name, key, "stale", "posts were forgotten", "")
    return State(name, key, "missing", "", plan.version)


def _kept(context: Context, name: str, key: str | None) -> str:
    """Says of what is fresh that it goes on although posts came since, or is an earlier one that is taken up again."""
    if name == "partition":
        return goes_back(context)
    if GRAPH[name].kept and context.basis is not context:
        return f"kept: made from {len(context.basis.shards)} of {len(context.shards)} shards"
    column = {"expert": "expert", "separate_expert": "expert", "random_expert": "random"}.get(name)
    if column is None or key is None:
        return ""
    said = context.need("partition").metadata.get("kept_members", {}).get(column, {})
    return f"kept: {100 * said[key]:.1f} % of its posts changed" if said.get(key) else ""


def _forgotten(context: Context, artifact: Artifact) -> str:
    """Says of an artifact that it was made from posts that were taken down since."""
    name = network_name(artifact.asset, artifact.key, artifact.version)
    return "forgotten posts; " if name in context.forgotten.saw else ""


def _runs(context: Context, name: str, key: str | None) -> bool:
    from assets.materialize import progress_file

    try:
        said = json.loads(progress_file(context.root, name, key).read_text("utf-8"))
        return alive(str(said["process"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def existing_instance(root: Path) -> "Iterator[dg.DagsterInstance | None]":
    """Dagster's instance of the study where there is one: nothing is made for who only looks."""
    home = os.environ.get("DAGSTER_HOME") or str(root / "dagster")
    if not os.path.exists(os.path.join(home, "dagster.yaml")):
        yield None
        return
    os.environ["DAGSTER_HOME"] = home
    with opened() as instance:
        yield instance


def failed_runs(instance: "dg.DagsterInstance | None", study: str) -> dict[tuple[str, str | None], str]:
    """Asset partitions whose latest run failed, with its error; one that was interrupted did not fail."""
    import dagster as dg

    from assets.study import STUDY

    latest: dict[tuple[str, str | None], str | None] = {}
    for run in instance.get_runs(limit=500) if instance else []:
        if run.tags.get(STUDY, study) != study:
            continue  # of another study in the same instance
        for asset in run.asset_selection or ():
            place = (asset.path[-1], run.tags.get("dagster/partition"))
            if place in latest:
                continue
            bad = run.status == dg.DagsterRunStatus.FAILURE
            latest[place] = error_of(instance, run.run_id) if bad else None
    return {place: why for place, why in latest.items() if why is not None}


def error_of(instance: Any, run_id: str) -> str:
    """Why a run failed, in a line: what its step said, or else what ended it."""
    import dagster as dg

    kinds = dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE
    events = [entry.dagster_event for entry in instance.all_logs(run_id, of_type=set(kinds))]
    for event in sorted(events, key=lambda event: kinds.index(event.event_type)):
        if event.event_type == dg.DagsterEventType.RUN_FAILURE:
            return " ".join((event.message or "failed").split())[:300]
        data = event.step_failure_data
        if data.user_failure_data and data.user_failure_data.description:
            return str(data.user_failure_data.description)
        return " ".join((data.error.message if data.error else "failed").split())[:300]
    return "failed"
