"""From a stage of moe_core to a Dagster asset: what all the assets here have in common."""

import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import dagster as dg

from assets.gpu import KEY
from assets.graph import ASSETS
from assets.progress import Progress
from assets.runs import claim
from assets.showing import about, curves, origin
from assets.study import OWNERS, experts, key_of, root, shards, study
from moe_core.clustering import faiss_build
from moe_core.engine.build import build
from moe_core.engine.context import Context, Report
from moe_core.errors import HardmoeError, device_error
from moe_core.failpoints import failpoint
from moe_core.stages.graph import GRAPH
from moe_core.store.artifact import Artifact
from moe_core.workspace import open_study, token

TRAINER = "trainer"  # the pool of all that train a network
NODES = "nodes"  # the resource, (study) -> Nodes: where a stage starts processes of its own


class Work(dg.Config):
    """What can be chosen when an asset is materialized."""

    force: bool = False  # build it again where it exists


def definition(name: str) -> dg.AssetsDefinition:
    """The asset of a stage, of the study which HARDMOE_STUDY names."""
    asset, stage, graph = ASSETS[name], GRAPH[name], GRAPH.for_study(study())
    return dg.asset(
        key=key_of(name),
        deps=[key_of(read) for read in stage.reads if GRAPH.aliases.get(read, read) in graph],
        description=stage.description,
        group_name=asset.group,
        kinds=asset.kinds,
        owners=OWNERS,
        partitions_def={None: None, "shards": shards(), "experts": experts()}[stage.keys],
        code_version=stage.code_version(study()),
        pool=TRAINER if stage.trains else None,
        required_resource_keys={KEY, NODES} if stage.uses_gpu else None,
        check_specs=[spec.replace_key(spec.key.replace_asset_key(key_of(name))) for spec in asset.checks],
    )(materialize)


def materialize(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """Finds or builds the artifact of the asset that is running; a user's mistake fails the step in one line."""
    name = context.asset_key.path[-1]
    partitioned = GRAPH[name].keys is not None and context.has_partition_key  # of the asset, not of the run alone
    key = context.partition_key if partitioned else None
    claim(context.instance, context.run)
    stage = GRAPH[name]
    with Progress(context, name, key) as progress:
        started = time.monotonic()
        try:
            if problem := faiss_build.check():
                context.log.warning(problem)
            work = _opened(progress.report, f"run {context.run_id}")
            around = nullcontext
            if stage.uses_gpu:
                around = getattr(context.resources, KEY).around(stage)
                work = replace(work, nodes=getattr(context.resources, NODES)(work.study))
            built = build(work, name, key, force=config.force, around=around)
            metadata, checks = describe(work, built.artifact, context.instance)
        except (HardmoeError, OSError, RuntimeError) as error:
            of_device = device_error(error)
            if of_device is None and not isinstance(error, HardmoeError | OSError):
                raise
            raise dg.Failure(" ".join(str(of_device or error).split()), allow_retries=False) from error
    if any(not check.passed and check.severity == dg.AssetCheckSeverity.ERROR for check in checks):
        work.store.remove(built.artifact)
    metadata |= {"reused": dg.MetadataValue.bool(built.reused)}
    metadata["step seconds"] = dg.MetadataValue.float(round(time.monotonic() - started, 2))
    failpoint("event.due", name)
    version = dg.DataVersion(built.artifact.version)
    return dg.MaterializeResult(data_version=version, metadata=metadata, check_results=checks)


def describe(
    work: Context, artifact: Artifact, instance: dg.DagsterInstance
) -> tuple[dict[str, Any], tuple[dg.AssetCheckResult, ...]]:
    """(metadata, results of checks) of an artifact, as Dagster shows them: first what is for the asset alone."""
    shown = ASSETS[artifact.asset].look(work, artifact, instance)
    drawn = curves(artifact) if GRAPH[artifact.asset].trains and "log.jsonl" in artifact.files else {}
    plain = about(artifact) | drawn | dict(shown.metadata) | origin(artifact, work)
    metadata = dict(shown.metadata) | drawn | plain
    return {name: value for name, value in metadata.items() if value is not None}, shown.checks


_last: Context | None = None


def _opened(report: Report, by: str) -> Context:
    """The study, opened again only where a file tells that its state changed since this process last opened it."""
    global _last
    if _last is None or _last.planner.provisional or _last.planner.state.token != token(study(), _last.store.documents):
        _last = open_study(study(), root(), remember=True)
    return replace(_last, report=report, by=by)
