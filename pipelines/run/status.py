"""What is fresh, stale, missing, failed or running, and why."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from assets import progress
from assets.runs import runs_by_task
from moe_core.engine.context import Context
from moe_core.engine.planner import Name, PlannedTask
from moe_core.stages.training.cost import MEMBERS_KEPT
from moe_core.store.artifact import Artifact, Spec
from moe_core.store.hashing import content_hash
from moe_core.store.layout import Layout
from moe_core.tables.location import tables_of
from moe_core.tables.shards import shards_in, values_in
from pipelines.instance.opening import opened_if_there
from pipelines.run.reasons import why_stale


@dataclass(frozen=True)
class State:
    """One artifact of a study: `state` is fresh, stale, missing, failed or running."""

    asset: str
    key: str | None
    state: str
    why: str
    version: str


def states_of(context: Context, only: str | None = None) -> list[State]:
    """State of every asset partition, or of those of one asset, in the order of the graph."""
    with opened_if_there(context.root) as instance:
        failed = failed_runs(instance, context.study.name)
    return states(context, context.planner.tasks(None if only is None else [only]), failed)


def states(context: Context, planned: Iterable[PlannedTask], failed: Mapping[Name, str]) -> list[State]:
    """States of planned tasks; `failed` is what `failed_runs` found."""
    running = _running(context.root)
    return [_state(context, task, running, failed) for task in planned]


def _state(context: Context, planned: PlannedTask, running: set[Name], failed: Mapping[Name, str]) -> State:
    stage, key = planned.name
    if planned.name in running:
        return State(stage, key, "running", "", "")
    if planned.artifact:
        return State(stage, key, "fresh", _kept(context, stage, key), planned.artifact.version)
    if planned.spec and planned.name in failed:
        return State(stage, key, "failed", failed[planned.name], planned.spec.version)
    old = max(context.store.versions(stage, key), key=lambda a: a.made_at, default=None)
    if old:
        taken_down = "posts taken down; " if old.label in context.takedowns.saw else ""
        why = why_stale(context, old, planned.spec) if planned.spec else str(planned.blocked)
        return State(stage, key, "stale", taken_down + why, old.version)
    if planned.spec is None:
        error = planned.blocked and planned.blocked.error
        return State(stage, key, "missing", failed.get(planned.name, str(error or "")), "")
    if "takedowns" in planned.spec.inputs:  # the artifact went with the takedown: it named a post
        return State(stage, key, "stale", "posts taken down", "")
    return State(stage, key, "missing", "", planned.spec.version)


def _kept(context: Context, stage: str, key: str | None) -> str:
    """Why something is fresh although posts came since; "" where none did."""
    frozen = context.planner.frozen
    if frozen and context.planner.graph[stage].frozen:
        return f"kept: made from {len(frozen.state.shards)} of {len(context.shards)} shards"
    column = MEMBERS_KEPT.get(stage)
    if column is None or key is None:
        return ""
    kept = context.planner.recorded("partition").metadata.get("kept_members", {}).get(column, {})
    return f"kept: {100 * kept[key]:.1f} % of its posts changed" if kept.get(key) else ""


def posts_of(context: Context) -> dict[str, Any]:
    """Posts read, accepted and rejected, with the reasons, of the shards that are ingested.

    One whose posts were taken down since is counted as its tables are now, as it will be once it is ingested again.
    """
    total, reasons = Counter(read=0, accepted=0, rejected=0), Counter[str]()
    for shard in context.shards:
        artifact = context.find("posts", shard.key)
        counts = artifact.metadata if artifact else _without_forgotten(context, shard.key)
        total.update({name: counts.get(name, 0) for name in total})
        reasons.update(counts.get("reasons", {}))
    return {**total, "rejects_by_reason": dict(reasons)}


def _without_forgotten(context: Context, shard: str) -> dict[str, Any]:
    """Counts of a shard that was ingested, and differs from what is wanted in nothing but a takedown since; else {}."""
    spec = context.spec("posts", shard)

    def made_by(of: Artifact | Spec) -> tuple[str, str, str]:
        return of.inputs["shard"], of.code, content_hash(of.settings)

    before = [old for old in context.store.versions("posts", shard) if made_by(old) == made_by(spec)]
    if not before:
        return {}
    read = max(before, key=lambda old: old.made_at).metadata["read"]
    tables = tables_of(context.store)
    accepted = shards_in(tables.posts).get(shard, 0)
    reasons = values_in(tables.rejects, shard, "reason")
    reasons["taken_down"] = reasons.get("taken_down", 0) + read - accepted - sum(reasons.values())
    return {"read": read, "accepted": accepted, "rejected": read - accepted, "reasons": dict(sorted(reasons.items()))}


def _running(root: Path) -> set[Name]:
    """Tasks that a living process builds now, by the progress that it writes."""
    layout = Layout(root)
    reports = ((stage, key, progress.read(file)) for stage, key, file in layout.all_progress())
    return {(stage, key) for stage, key, report in reports if progress.is_written_on(report, layout)}


def failed_runs(instance: dg.DagsterInstance | None, study: str) -> dict[Name, str]:
    """Asset partitions whose latest run failed, with its error; one that was interrupted did not fail."""
    latest: dict[Name, dg.DagsterRun] = {}
    for name, run in runs_by_task(instance, study, limit=500) if instance else ():
        latest.setdefault(name, run)
    failed = ((name, run) for name, run in latest.items() if run.status == dg.DagsterRunStatus.FAILURE)
    return {name: error_of(instance, run.run_id) for name, run in failed}


def error_of(instance: Any, run_id: str) -> str:
    """Why a run failed, in one line: the error of its step, or else what ended it."""
    kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
    events = [entry.dagster_event for entry in instance.all_logs(run_id, of_type=kinds)]
    for event in events:
        if event.is_step_failure:
            return step_error(event)
    return " ".join((events[0].message if events else "failed").split())[:300]


def step_error(event: Any) -> str:
    """Why a step failed, in one line: the mistake that it reported, or else the exception that was raised in it."""
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return str(data.user_failure_data.description)
    error = data.error
    while error and error.cause:  # Dagster's own error is around it
        error = error.cause
    return " ".join((error.message if error else "failed").split())
