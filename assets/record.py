"""Records artifacts that exist in Dagster's event log without a run."""

from collections.abc import Iterable, Iterator, Mapping

import dagster as dg
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    get_input_data_version_tag,
)

from assets.graph import ASSETS
from assets.materialize import describe
from assets.study import key_of
from moe_core.engine.context import Context
from moe_core.engine.planner import PlannedTask

PARTITIONS = "partitions"  # version of an input that is many partitions: Dagster compares these by event pointers
READ_AT_ONCE = 500  # events a query


class Recorder:
    """Compares artifacts with the latest materializations in one instance, and records what is missing there.

    It reads Dagster's record of an asset once, of all partitions: create another one to see later events.
    """

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self._latest: dict[str, dict[str | None, Mapping[str, str]]] = {}  # by stage and key

    def is_recorded(self, context: Context, planned: PlannedTask) -> bool:
        """Whether Dagster's latest record is of this artifact, made from what is there now."""
        assert planned.spec
        recorded = self._latest_tags(planned.stage, planned.key)
        if recorded.get(DATA_VERSION_TAG) != planned.spec.version:
            return False
        return all(recorded.get(tag) == version for tag, version in self._inputs(context, planned) if version)

    def wants_run(self, planned: PlannedTask) -> bool:
        """Whether checks are due that only a run makes, such as of an artifact whose run was killed before them."""
        assert planned.spec
        if not ASSETS[planned.stage].checked:
            return False
        return self._latest_tags(planned.stage, planned.key).get(DATA_VERSION_TAG) != planned.spec.version

    def record(self, context: Context, planned: PlannedTask) -> None:
        """Reports the artifact as materialized, with what a run that finds it would show, results of its checks too."""
        assert planned.spec
        assert planned.artifact
        stage = context.planner.graph[planned.stage]
        metadata, checks = describe(context, planned.artifact, self.instance)
        metadata |= {"reused": dg.MetadataValue.bool(True)}
        tags = {
            DATA_VERSION_TAG: planned.spec.version,
            DATA_VERSION_IS_USER_PROVIDED_TAG: "true",
            CODE_VERSION_TAG: stage.code_version(context.study),
        }
        pointer = str(self.instance.event_log_storage.get_maximum_record_id() or "NULL")
        for tag, version in self._inputs(context, planned):
            tags[tag] = version or PARTITIONS
            tags[tag.replace("input_data_version", "input_event_pointer")] = pointer
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization(key_of(planned.stage), partition=planned.key, metadata=metadata, tags=tags)
        )
        report_checks(self.instance, planned.stage, checks)

    def _inputs(self, context: Context, planned: PlannedTask) -> Iterator[tuple[str, str]]:
        """(tag, version) of each one upstream, as a run notes them; version "" for one of many partitions."""
        graph, stage = context.planner.graph, context.planner.graph[planned.stage]
        for read in stage.reads:
            upstream = graph.aliases.get(read, read)
            if upstream not in graph:
                continue
            single = graph[upstream].keys is None and upstream == read
            spec = context.planner.spec(upstream) if single else None
            yield get_input_data_version_tag(key_of(read)), getattr(spec, "version", "")

    def _latest_tags(self, stage: str, key: str | None) -> Mapping[str, str]:
        """Tags of the latest materialization."""
        if stage not in self._latest:
            self._latest[stage] = self._read(key_of(stage), key is not None)
        return self._latest[stage].get(key, {})

    def _read(self, asset: dg.AssetKey, partitioned: bool) -> dict[str | None, Mapping[str, str]]:
        """Tags of the latest materialization of each partition, by its key; a query for each would take 7 ms."""
        if not partitioned:
            records = self.instance.fetch_materializations(asset, limit=1).records
        else:
            kind = dg.DagsterEventType.ASSET_MATERIALIZATION
            ids = list(self.instance.event_log_storage.get_latest_storage_id_by_partition(asset, kind).values())
            records = [
                record
                for begin in range(0, len(ids), READ_AT_ONCE)
                for record in self.instance.fetch_materializations(
                    dg.AssetRecordsFilter(asset, storage_ids=ids[begin : begin + READ_AT_ONCE]), limit=READ_AT_ONCE
                ).records
            ]
        events = [event for record in records if (event := record.asset_materialization)]
        return {event.partition if partitioned else None: event.tags or {} for event in events}


def report_checks(instance: dg.DagsterInstance, stage: str, checks: Iterable[dg.AssetCheckResult]) -> None:
    """Records results of checks without a run."""
    blocking = {spec.name: spec.blocking for spec in ASSETS[stage].checks}
    for check in checks:
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=key_of(stage),
                check_name=str(check.check_name),
                passed=check.passed,
                severity=check.severity,
                description=check.description,
                blocking=blocking.get(str(check.check_name)),
                metadata=check.metadata or {},
            )
        )
