"""From a stage of moe_core to a Dagster asset: what all the assets here have in common."""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from assets.gpu import KEY, uses_gpu, with_gpu
from assets.runs import claim
from assets.showing import about, cost_so_far, curves, numbers, origin
from assets.study import EXPERTS, SHARDS, root, study
from moe_core.engine.context import Context
from moe_core.engine.stage import build
from moe_core.failpoints import failpoint
from moe_core.processes import alive, this_process
from moe_core.stages.graph import GRAPH
from moe_core.stages.training.cost import TRAINED
from moe_core.store.artifact import Artifact
from moe_core.store.files import write_text

OBSERVE_SECONDS = 4.0
OWNERS = ["team:hardmoe"]
TRAINER = "trainer"  # the pool of all that train a network


def has(name: str) -> bool:
    """Whether the study has the asset: some go with one `decoder.mode` only."""
    return name not in GRAPH or GRAPH[name].when(study())


def asset_of(name: str, **more: Any) -> Any:
    """`dg.asset` with what follows from the stage: its dependencies, partitions and version of code and settings."""
    stage = GRAPH[name]
    partitions = {None: None, "shards": SHARDS, "experts": EXPERTS}[stage.keys]
    return dg.asset(
        name=name,
        deps=[dg.AssetKey(upstream) for upstream in stage.reads if has(upstream)],
        partitions_def=partitions,
        code_version=stage.code_version(study()),
        owners=OWNERS,
        pool=TRAINER if name in TRAINED else None,
        required_resource_keys={KEY} if uses_gpu(name) else None,
        **more,
    )


class Work(dg.Config):
    """What can be said when an asset is materialized."""

    force: bool = False  # make it again where it exists


Look = Callable[[Context, Artifact], tuple[dict[str, Any], list[dg.AssetCheckResult]]]


def materialize(context: dg.AssetExecutionContext, config: Work, look: Look | None = None) -> dg.MaterializeResult:
    """Finds or makes the artifact of the asset that is running; a user's mistake fails the step in one line.

    `look` gives more metadata, where None hides what the artifact says by that name, and results of checks. When one
    fails that blocks, the artifact is taken away: the next run makes it again, and nobody reads it until then.
    """
    name = context.asset_key.path[-1]
    partitioned = GRAPH[name].keys is not None and context.has_partition_key  # of the asset, not of the run alone
    key = context.partition_key if partitioned else None
    claim(context.instance, context.run)
    stage = with_gpu(GRAPH[name], getattr(context.resources, KEY)) if uses_gpu(name) else GRAPH[name]
    with Progress(context, name, key) as progress:
        work = Context(study(), root(), progress.report, by=f"run {context.run_id}")
        started = time.monotonic()
        try:
            built = build(work, stage, key, force=config.force)
            more, checks = look(work, built.artifact) if look else ({}, [])
            if name in TRAINED:
                drawn = curves(built.artifact) if "log.jsonl" in built.artifact.files else {}  # a generation has many
                more = drawn | more | cost_so_far(work)
        except (ValueError, OSError) as error:
            raise dg.Failure(" ".join(str(error).split()), allow_retries=False) from error
    metadata = more | {name: value for name, value in about(built.artifact).items() if name not in more}
    metadata = {name: value for name, value in metadata.items() if value is not None}
    metadata |= {"reused": dg.MetadataValue.bool(built.reused)} | origin(built.artifact, work)
    if any(not check.passed and check.severity == dg.AssetCheckSeverity.ERROR for check in checks):
        work.store.remove(built.artifact)
    metadata["step seconds"] = dg.MetadataValue.float(round(time.monotonic() - started, 2))
    version = dg.DataVersion(built.artifact.version)
    failpoint("event.due", name)
    return dg.MaterializeResult(data_version=version, metadata=metadata, check_results=checks)


def progress_file(folder: Path, name: str, key: str | None) -> Path:
    return folder / ".progress" / (f"{name}.json" if key is None else f"{name}.{key}.json")


class Progress:
    """Passes a stage's reports on: to a file that the terminal reads, and every few seconds to Dagster's event log."""

    def __init__(self, context: dg.AssetExecutionContext, name: str, key: str | None) -> None:
        self.context, self.name, self.key = context, name, key
        self.file = progress_file(root(), name, key)
        self.observed = time.monotonic()

    def __enter__(self) -> "Progress":
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.report({})
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_anothers():
            self.file.unlink(missing_ok=True)

    def report(self, said: Mapping[str, Any]) -> None:
        now = {"pid": os.getpid(), "process": this_process(), "run": self.context.run_id, "time": time.time()} | dict(
            said
        )
        if "waits_for" in said:
            self.context.log.info(f"waits for process {said['waits_for']}, which makes the same")
        if "waits" in said:
            self.context.log.info(f"waits for {said['waits']}")
        if set(said) - {"waits_for"} or not self._is_anothers():  # whoever is at work says how far it is
            write_text(self.file, json.dumps(now))
        if said and time.monotonic() - self.observed >= OBSERVE_SECONDS:
            self.observed = time.monotonic()
            self.context.log_event(
                dg.AssetObservation(asset_key=self.context.asset_key, partition=self.key, metadata=numbers(said))
            )

    def _is_anothers(self) -> bool:
        """Another process that lives makes the same and tells its progress in the file."""
        try:
            its = str(json.loads(self.file.read_text("utf-8"))["process"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return its != this_process() and alive(its)
