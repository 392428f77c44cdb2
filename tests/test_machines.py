"""Several machines on one folder, made of name spaces: who lives, who builds what, and what a lost machine leaves."""

import json
import shutil

import dagster as dg
import pytest

from assets.runs import HOST, PROCESS, claim, leased
from assets.study import STUDY
from helpers.command import write
from helpers.machines import hardmoe_on, lose, machine
from helpers.plain import make_plainly
from helpers.processes import until
from helpers.ui import free_port
from helpers.with_controls import QUICK, small_study
from moe_core import processes
from moe_core.errors import LockHeld
from moe_core.processes import this_process
from moe_core.settings import Cluster, Partition, Source
from moe_core.store.files import dead_files, dead_parts, hidden_name, part_of
from moe_core.store.layout import Layout
from moe_core.store.locks import builder, exclusive, is_held
from moe_core.study_file import load_study
from moe_core.workspace import open_study
from pipelines.instance.reap import reap
from pipelines.instance.ui_lock import lock_ui
from pipelines.run.plan import in_own_order
from pipelines.run.status import states_of

STATES = dg.DagsterRunStatus
RUN = "12345678-0000-0000-0000-000000000000"
ELSEWHERE = "1_90125_1f0c9a3e_0123abcd"  # a process of another machine

LOOKS = """
import sys
from pathlib import Path
from moe_core import processes
from moe_core.store.files import dead_files, dead_parts, hidden_name, part_of
print(processes.this_process(), processes.alive(sys.argv[1]), processes.is_dead(sys.argv[1]))
folder = Path(sys.argv[2])
hidden_name(folder).mkdir()
part_of(folder / "text").touch()
print(len(dead_parts(folder)), len(dead_files(folder)), flush=True)
input()
"""


def test_no_machine_judges_the_processes_and_files_of_another(tmp_path):
    hidden_name(tmp_path).mkdir()
    part_of(tmp_path / "text").touch()
    other = machine("gpu02", "-c", LOOKS, this_process(), tmp_path)
    name, *seen = other.stdout.readline().split()
    assert seen == ["False", "False"], "of a living process of this one"
    assert other.stdout.readline().split() == ["0", "0"]
    assert processes.pid_of(name) == 1, "which runs here, too"
    assert (processes.alive(name), processes.is_dead(name)) == (False, False)
    lose(other)
    assert (processes.alive(name), processes.is_dead(name)) == (False, False)
    assert (dead_parts(tmp_path), dead_files(tmp_path)) == ([], [])


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A study's folder, of which this process knows."""
    file = write(tmp_path, small_study())
    monkeypatch.setattr("assets.study.study_file", lambda: file)
    monkeypatch.setattr("assets.study.study", lambda: load_study(file))
    return tmp_path


def add_run(instance, process=ELSEWHERE, study="tiny"):
    tags = {PROCESS: f"{RUN[:8]}.{process}", HOST: "gpu02", STUDY: study}
    instance.add_run(dg.DagsterRun("__ASSET_JOB", RUN, status=STATES.STARTED, tags=tags))


def test_the_run_of_another_machine_ends_once_its_lease_is_free(tmp_path):
    lease = Layout(tmp_path).lease(RUN)
    with dg.instance_for_test() as dagster:
        add_run(dagster)
        assert reap(dagster, tmp_path, "tiny") == [], "without a lease nobody can tell"
        with exclusive(lease):
            assert reap(dagster, tmp_path, "tiny") == []
        assert reap(dagster, tmp_path, "another") == [], "its leases are in another folder"
        assert lease.exists()
        assert reap(dagster, tmp_path, "tiny") == [RUN]
        assert dagster.get_run_by_id(RUN).status == STATES.FAILURE
        (event,) = dagster.all_logs(RUN, of_type=dg.DagsterEventType.RUN_FAILURE)
        assert event.message == "process 1 of gpu02 is gone: killed, or its machine was lost"
        assert list(lease.parent.iterdir()) == []


def test_a_run_that_ends_while_one_looks_is_left_as_it_ended(tmp_path, monkeypatch):
    with dg.instance_for_test() as dagster:
        add_run(dagster)

        def ends_now(lease):
            dagster.report_run_canceled(dagster.get_run_by_id(RUN))
            return False

        monkeypatch.setattr("pipelines.instance.reap.is_held", ends_now)
        assert reap(dagster, tmp_path, "tiny") == []
        assert dagster.get_run_by_id(RUN).status == STATES.CANCELED


def test_leases_of_runs_that_nobody_knows_leave_with_the_next_reaping(tmp_path):
    layout = Layout(tmp_path)
    with dg.instance_for_test() as dagster, exclusive(layout.lease("held")):
        layout.lease("left").touch()
        reap(dagster, tmp_path, "tiny")
    assert [path.name for path in layout.leases.iterdir()] == ["held"]


def test_a_run_has_its_lease_before_its_tags_and_until_it_is_over(home):
    lease = Layout(home).lease(RUN)
    with dg.instance_for_test() as dagster:
        run = dagster.add_run(dg.DagsterRun("__ASSET_JOB", RUN, status=STATES.STARTED))
        with leased(RUN):
            assert is_held(lease)
            claim(dagster, run)  # as its step does
        assert not lease.exists()
        claim(dagster, run)  # of the UI: the process is the run's
        assert is_held(lease)
        other = dagster.add_run(dg.DagsterRun("__ASSET_JOB", "2" * 8, status=STATES.STARTED))
        claim(dagster, other)  # a process that carries out one after the other
        assert not lease.exists()


@pytest.mark.parametrize(("held", "state"), [(True, "running"), (False, "missing")])
def test_the_report_of_another_machine_counts_while_its_run_has_its_lease(tmp_path, monkeypatch, held, state):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    file = write(tmp_path, small_study())
    layout = Layout(tmp_path)
    layout.progress_folder.mkdir()
    layout.progress("trunk", None).write_text(json.dumps({"process": ELSEWHERE, "run": RUN, "time": 0}))
    with exclusive(layout.lease(RUN if held else "another")):
        (found,) = states_of(open_study(load_study(file), tmp_path), only="trunk")
    assert found.state == state


def test_the_ui_of_another_machine_is_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    lock = tmp_path / ".ui.lock"
    with exclusive(lock):
        lock.write_text(json.dumps({"address": "http://127.0.0.1:3000", "process": ELSEWHERE, "host": "gpu02"}))
        with pytest.raises(LockHeld, match=r"http://127.0.0.1:3000, process 1 of gpu02; stop it first"):
            lock_ui(free_port())


def test_commands_that_share_a_study_go_through_its_experts_in_different_orders():
    names = [("features", "a"), *(("expert", f"e{k:03}") for k in range(16)), ("features", "b")]
    one, two = (in_own_order(names, f"1_{start}_1f0c9a3e_0123abcd") for start in (90125, 90126))
    assert one == in_own_order(names, "1_90125_1f0c9a3e_0123abcd")
    assert {*one} == {*two} == {*names}
    assert [stage for stage, _ in one] == ["features"] * 2 + ["expert"] * 16
    assert one[2:] != two[2:]
    assert sum(a == b for a, b in zip(one[2:], two[2:], strict=True)) < 4


def test_no_artifact_is_stale_by_the_number_of_threads_or_the_engine(file):
    study = load_study(file)
    clusters = (Cluster(), Cluster(threads=7, engine="ray", address="gpu01:6379"))
    ours, theirs = (
        open_study(study.model_copy(update={"cluster": cluster}), file.parent).planner for cluster in clusters
    )
    versions = [[task.spec and task.spec.version for task in planner.tasks()] for planner in (ours, theirs)]
    assert versions[0] == versions[1]
    assert ours.spec("expert", "e002").version in versions[0]


@pytest.mark.parametrize("threads", [0, 1])
def test_a_second_machine_is_told_of_where_results_follow_from_its_cores(file, started, threads):
    context = open_study(load_study(file), file.parent)
    lock = context.store.layout.build_lock("expert", "e000", context.version("expert", "e000"))
    command = ("backfill", "--experts", "e000,e001", "--study", file, "--set", f"cluster.threads={threads}")
    told = "Warning: gpu02 builds this study, too, and threads follow from each machine's cores"
    with exclusive(lock):
        lock.write_text(json.dumps({"host": "gpu02", "process": ELSEWHERE, "by": f"run {RUN}", "since": 0.0}))
        process = started(*command, HARDMOE_THREADS="", OMP_NUM_THREADS="", CUDA_VISIBLE_DEVICES="")
        until(lambda: context.store.versions("expert", "e001"), process)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert errors.count(told) == (0 if threads else 1)


def up_to_the_partition(folder, experts):
    """A study whose experts take a while, made up to its partition."""
    training = QUICK.model_copy(update={"epochs": 150, "checkpoint_seconds": 0.1})
    source, partition = Source(format="synthetic", posts=300 * experts, shards=1), Partition(experts=experts, pca=8)
    cluster = Cluster(threads=1)
    file = write(folder, small_study(source=source, partition=partition, expert_training=training, cluster=cluster))
    make_plainly(file, "posts", "splits", "vocabulary", "trunk", "trunk_features", "partition")
    return file


def started_runs(instance):
    return [run for run in instance.get_runs() if not run.is_finished]


def backfills_on_two_machines_one_is_lost(tmp_path, monkeypatch, experts, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    file = up_to_the_partition(tmp_path / "study", experts)
    root, alone = file.parent, tmp_path / "alone"
    shutil.copytree(root, alone)
    layout, context = Layout(root), open_study(load_study(file), root)
    locks = {k: layout.build_lock("expert", k, context.version("expert", k)) for k in context.experts}

    def built_by(host):
        return [k for k, lock in locks.items() if (holder := builder(lock)) and holder.host == host]

    command = ("backfill", "--all", "--workers", "1", "--study", file)
    first, second = (hardmoe_on(host, *command, **variables) for host in ("gpu01", "gpu02"))
    try:
        until(lambda: built_by("gpu02"), first)
        with dg.DagsterInstance.from_config(str(layout.used_dagster_home)) as instance:
            assert reap(instance, root, "tiny") == [], "both live"
            assert {run.tags[HOST] for run in started_runs(instance)} <= {"gpu01", "gpu02"}
            until(lambda: "running" in {state.state for state in states_of(context, only="expert")}, first)
            until(lambda: built_by("gpu02"), first)
            lose(second)
            out, errors = first.communicate(timeout=900)
            assert first.returncode == 0, out + errors
            assert "0 failed" in out
            (left,) = started_runs(instance)
            assert left.tags[HOST] == "gpu02"
            third = hardmoe_on("gpu03", "reap", "--study", file, **variables)
            ended, errors = third.communicate(timeout=300)
            assert ended == f"1 dead runs ended: {left.run_id}\n", errors
            assert started_runs(instance) == []
            made = [
                run.tags["dagster/partition"]
                for run in instance.get_runs(dg.RunsFilter(statuses=[STATES.SUCCESS]))
                for event in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
                if not event.dagster_event.event_specific_data.materialization.metadata["reused"].value
            ]
    finally:
        lose(first)
        lose(second)
    assert sorted(made) == context.experts, "each once"
    assert {context.need("expert", k).metadata["threads"] for k in context.experts} == {1}
    make_plainly(alone / "study.toml", "expert")
    one, two = (open_study(load_study(file), root) for root in (alone, root))
    assert {k: one.need("expert", k).content_hash for k in one.experts} == {
        k: two.need("expert", k).content_hash for k in two.experts
    }
    assert list(layout.leases.iterdir()) == []


@pytest.mark.slow
def test_two_machines_make_each_expert_once_though_one_is_lost(tmp_path, monkeypatch):
    home = tmp_path / "study" / "dagster"
    backfills_on_two_machines_one_is_lost(tmp_path, monkeypatch, 6, {"DAGSTER_HOME": str(home)})


@pytest.mark.soak
def test_sixteen_experts_by_two_machines_and_dagster_in_postgresql(tmp_path, monkeypatch, postgres):
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text(
        "storage: {postgres: {postgres_url: {env: HARDMOE_PG}}}\ntelemetry: {enabled: false}\n"
    )
    variables = {"DAGSTER_HOME": str(home), "HARDMOE_PG": postgres}
    backfills_on_two_machines_one_is_lost(tmp_path, monkeypatch, 16, variables)
