"""The schedule and the sensor of repartitions, and what of Dagster's assets they make stale."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from helpers.arrivals import kept_at, shards_of, weights_of
from helpers.growing import add_shard, growing_study, make, opened
from helpers.requests import carry_out
from moe_core.settings import Repartition
from moe_core.study_file import load_study

# ---- Dagster


def test_the_schedule_and_the_sensor_are_stopped_and_the_cron_is_that_of_the_study():
    import dagster as dg

    from pipelines.definitions import defs
    from pipelines.repartition import drift, weekly_repartition

    assert weekly_repartition.default_status == dg.DefaultScheduleStatus.STOPPED
    assert drift.default_status == dg.DefaultSensorStatus.STOPPED
    assert weekly_repartition.cron_schedule == Repartition().cron
    with dg.instance_for_test() as instance:
        asked = weekly_repartition.evaluate_tick(dg.build_schedule_context(instance=instance))
    assert len(asked.run_requests) == 1
    assert weekly_repartition.job_name == "repartition"
    assert defs.get_job_def("repartition")
    with pytest.raises(ValueError, match="must have five fields"):
        Repartition(cron="weekly")


def test_the_time_zone_of_the_schedule_is_a_setting(tmp_path):
    from dagster._utils.schedules import schedule_execution_time_iterator

    file = tmp_path / "study.toml"
    found = {}
    for zone in ("UTC", "Europe/Berlin", "America/New_York"):
        file.write_text(f'[repartition]\ntimezone = "{zone}"\n')
        look = "from pipelines.repartition import weekly_repartition as w"
        code = f"{look}; print(w.cron_schedule, w.execution_timezone, sep='|')"
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"HARDMOE_STUDY": str(file)}, capture_output=True, text=True
        )
        cron, said = done.stdout.strip().split("|")
        assert said == zone, done.stderr
        for day in ("2026-01-05", "2026-07-06"):  # Mondays
            midnight = datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
            at = next(schedule_execution_time_iterator(midnight, cron, said, ascending=True))
            found[zone, day[5:7]] = at.astimezone(UTC).hour
    assert found == {
        ("UTC", "01"): 3,
        ("UTC", "07"): 3,
        ("Europe/Berlin", "01"): 2,
        ("Europe/Berlin", "07"): 1,  # summer time
        ("America/New_York", "01"): 8,
        ("America/New_York", "07"): 7,
    }


@pytest.mark.parametrize(
    "zone", ["Berlin", "", "CET+1", "Europe", "../UTC", "/etc/localtime", "Europe/Berlin\0", "é", "a" * 999]
)
def test_a_time_zone_that_is_none_is_one_line(tmp_path, zone):
    (tmp_path / "study.toml").write_text(f"[repartition]\ntimezone = {json.dumps(zone)}\n", "utf-8")
    with pytest.raises(ValueError, match=r"repartition.timezone = .*: no such time zone: wanted an IANA name") as said:
        load_study(tmp_path / "study.toml")
    assert "\n" not in str(said.value)


def test_the_sensor_asks_once_for_each_partition_that_drifted(study_of, monkeypatch):
    import dagster as dg

    from pipelines import repartition

    def look(**limits):
        more = {"drift_far": 1.0, "drift_ambiguous": 1.0, "drift_imbalance": 9.0} | limits
        study, root = study_of(**kept_at(0.1, **more))
        monkeypatch.setattr(repartition, "study", lambda: study)
        monkeypatch.setattr(repartition, "root", lambda: root)
        with dg.instance_for_test() as instance:
            return study, root, repartition.drift(dg.build_sensor_context(instance=instance))

    study, root, first = look()
    assert first.skip_reason.skip_message == "no shard came since the gate was fitted"
    add_shard(shards_of(root), 3)
    make(study, root, "partition")
    said = opened(study, root).need("partition").metadata["drift"]
    assert said["posts_since_fit"] == 119, "one is damaged"
    assert look()[2].skip_reason.skip_message.startswith("no drift")
    for name in ("far", "ambiguous"):
        assert said[name] > 0
        asked = look(**{f"drift_{name}": 0.0})[2].run_requests
        assert [request.run_key for request in asked] == [f"drift-{opened(study, root).version('partition')}"]
    assert said["imbalance"] > 0
    assert bool(look(drift_imbalance=1.0)[2].run_requests) == (said["imbalance"] > 1)


STALE = """
import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest
from pipelines.definitions import defs
with dg.DagsterInstance.get() as instance:
    graph = defs.resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    for key in sorted(graph.get_all_asset_keys()):
        partitions = graph.get(key).partitions_def
        for name in partitions.get_partition_keys(dynamic_partitions_store=instance) if partitions else [None]:
            state = resolver.get_status(key, name).value
            if state not in ("FRESH", "MISSING"):
                print(key.to_user_string(), name)
"""
JOB = """
import dagster as dg
from pipelines.definitions import defs
with dg.DagsterInstance.get() as instance:
    config = {"ops": {"request_refit": {"config": {"then": "partition"}}}}
    assert defs.get_job_def("repartition").execute_in_process(run_config=config, instance=instance).success
"""


@pytest.mark.slow
def test_through_dagster_only_what_changed_is_stale_and_what_is_kept_is_not(tmp_path):
    for number in range(2):
        add_shard(tmp_path / "source", number)
    study, root = growing_study(tmp_path / "source", experts=2, **kept_at(1.0)), tmp_path / "store"
    opened(study, root)
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
    inside = environment | {"HARDMOE_STUDY": str(root / "study.toml"), "DAGSTER_HOME": str(root / "dagster")}

    def hardmoe(*arguments):
        command = [sys.executable, "-m", "pipelines.cli.main", arguments[0], "--study", str(root / "study.toml")]
        done = subprocess.run([*command, *arguments[1:]], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def python(code):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=inside)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    hardmoe("run", "--until", "mixture")
    weights = weights_of(opened(study, root))
    add_shard(tmp_path / "source", 2, posts=30)
    made = hardmoe("run", "--until", "mixture")
    assert "expert" not in made
    assert weights_of(opened(study, root)) == weights
    assert python(STALE) == []
    assert "0 made" in hardmoe("run", "--until", "mixture")
    said = json.loads(hardmoe("repartition", "--dry-run", "--json"))
    assert {"moved", "new", "gone", "trained_again", "kept"} <= set(said)
    version = opened(study, root).version("partition")
    python(JOB)
    carry_out(inside)
    now = opened(study, root)
    assert now.need("partition").inputs["previous"] == version
    assert {line.split()[0] for line in python(STALE)} == {"shared_decoder", "mixture"}
    assert weights_of(now) == weights
