"""Backfills: plans, settings, two at once, Ctrl-C, workers that crash or stand still, and whose GPU is whose."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner

from moe_core.engine.context import Context
from moe_core.engine.stage import Stage, build, maker
from moe_core.heartbeat import Pulse, stall_seconds
from moe_core.overrides import override
from moe_core.settings import Partition, Source, load_study
from moe_core.stages.experts.joint import _Helpers
from moe_core.stages.gate import current_partition
from moe_core.stages.graph import GRAPH
from moe_core.store.artifact import StageOutput
from pipelines.cli.main import main
from pipelines.cli.progress import Display, results_of
from pipelines.run.estimate import Cost, Step, makespan
from pipelines.run.scheduler import Running, Summary, note
from pipelines.run.task import Task, TaskResult
from test_graph import QUICK, _names, small_study, write

TO_THE_PARTITION = """
import sys
from pathlib import Path
from moe_core.settings import load_study
from moe_core.stages.gate import current_partition
from moe_core.engine.context import Context
from moe_core.engine.stage import build
from moe_core.stages.graph import GRAPH
file = Path(sys.argv[1])
context = Context(load_study(file), file.parent)
for name in ("posts", "splits", "vocabulary", "trunk", "trunk_features", "partition"):
    for key in GRAPH[name].keys_of(context):
        build(context, GRAPH[name], key)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A study made up to its partition by a plain script: Dagster knows nothing of it."""
    source, partition = Source(format="synthetic", posts=900, shards=1), Partition(experts=3, pca=8)
    training = QUICK.model_copy(update={"checkpoint_seconds": 0.1})
    study = small_study(source=source, partition=partition, expert_training=training)
    file = write(tmp_path_factory.mktemp("prepared"), study)
    subprocess.run([sys.executable, "-c", TO_THE_PARTITION, str(file)], check=True)
    return file


@pytest.fixture
def file(prepared, tmp_path, monkeypatch):
    """A copy, to be changed."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("HARDMOE_STUDY", "")
    shutil.copytree(prepared.parent, tmp_path / "study")
    return tmp_path / "study" / "study.toml"


def hardmoe(*arguments):
    """In this process: what only looks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DAGSTER_HOME", raising=False)
        patch.setenv("HARDMOE_STUDY", "")
        return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture
def started():
    """Starts the command in a process of its own, in a process group of its own."""
    processes = []

    def start(*arguments, **more):
        environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")} | more
        command = [sys.executable, "-m", "pipelines.cli.main", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, **pipes, text=True, env=environment, start_new_session=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def until(true, process=None, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def runs_of(file):
    with dg.DagsterInstance.from_config(str(file.parent / "dagster")) as instance:
        return {run.tags["dagster/partition"]: run.status.value for run in instance.get_runs()}


def worker_of(file, key):
    return int(json.loads((file.parent / ".progress" / f"expert.{key}.json").read_text())["pid"])


def saved_since(then, checkpoint):
    return lambda: checkpoint.stat().st_mtime_ns > then


def nobody_is_left(file):
    return not [p for p in Path("/proc").glob("[0-9]*/environ") if _names(p, str(file))]


def everything_under(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*") if path.is_file()}


def test_two_backfills_at_once_train_each_expert_once_and_the_plan_knows_what_that_took(file, started):
    both = [started("backfill", "--all", "--study", file, "--workers", "2") for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    with dg.DagsterInstance.from_config(str(file.parent / "dagster")) as instance:
        found = instance.fetch_materializations(dg.AssetKey("expert"), limit=20).records
    trained = [r.partition_key for r in found if not r.asset_materialization.metadata["reused"].value]
    assert sorted(trained) == ["e000", "e001", "e002"]
    for out, _ in said:
        results = [line.split() for line in out.splitlines() if "loss" in line]
        assert [line[0] for line in results[-3:]] == ["expert:e000", "expert:e001", "expert:e002"]
        assert {line[1] for line in results[-3:]} <= {"made", "fresh"}
    assert sum(out.count(" made  ") for out, _ in said) == 3

    before = everything_under(file.parent)
    assert json.loads(hardmoe("backfill", "--all", "--dry-run", "--json", "--study", file).output)["will_run"] == []
    once = hardmoe("backfill", "--all", "--dry-run", "--force", "--json", "--study", file, "--workers", "1")
    plan = json.loads(once.output)
    context = Context(load_study(file), file.parent)
    metadata = [context.need("expert", step["key"]).metadata for step in plan["will_run"]]
    assert [step["why"] for step in plan["will_run"]] == ["forced"] * 3
    assert plan["estimate"]["not_measured_before"] == []
    whole_batches = [one["training_images"] / one["training_posts"] for one in metadata]  # a last part is left out
    expected = sum(one["seconds"] / share for one, share in zip(metadata, whole_batches, strict=True))
    assert plan["estimate"]["seconds"] == pytest.approx(expected, abs=0.3)
    twice = hardmoe("backfill", "--all", "--dry-run", "--json", "--study", file, "--set", "expert_training.epochs=2")
    longer = json.loads(twice.stdout)
    assert [step["why"] for step in longer["will_run"]] == [
        "setting expert_training.epochs changed from 1.0 to 2.0"
    ] * 3
    assert sum(s["seconds"] for s in longer["will_run"]) == pytest.approx(2 * expected, abs=0.5)
    wider = hardmoe("backfill", "--all", "--dry-run", "--study", file, "--set", "network.embedding=8")
    assert "follows from" not in wider.stdout
    assert everything_under(file.parent) == before


def test_a_dry_run_of_a_new_study_says_what_follows_from_what_and_invents_no_figure(tmp_path):
    file = write(tmp_path, small_study())
    done = hardmoe("run", "--dry-run", "--until", "expert", "--study", file)
    rows = {line.split()[0]: line for line in done.output.splitlines()}
    assert rows["trunk"].endswith("missing")
    assert rows["expert:e001"].endswith("follows from trunk, partition")
    assert "Time, disk and GPU hours: not measured before" in done.output
    assert [path.name for path in tmp_path.rglob("*")] == ["study.toml"]
    refused = hardmoe("run", "--json", "--study", file)
    assert (refused.exit_code, refused.output) == (
        1,
        "Error: --json goes with --dry-run: it is the plan as a document\n",
    )


def test_what_depends_on_one_another_takes_its_time_one_after_the_other_and_the_rest_at_once():
    def step(asset, key, seconds):
        return Step(asset, key, "missing", Cost(seconds))

    experts = [step("expert", f"e{k:03d}", 2.0) for k in range(4)]
    steps = [step("trunk", None, 10.0), *experts, step("mixture", None, 1.0), step("report", None, None)]
    assert makespan(steps, 1) == 19
    assert makespan(steps, 2) == 15
    assert makespan([], 2) == 0


def test_a_setting_is_changed_in_the_file_whose_comments_stay(tmp_path):
    file = tmp_path / "study.toml"
    text = 'name = "mine"\n[trunk]\n# tried 0.5\nlr = 0.3 # enough\n'
    file.write_text(text)
    found = override(file, ["trunk.lr=0.2", "partition.experts=4", "trunk.momentum=0.9", "name=yours"])
    assert list(map(str, found.changes)) == [
        "trunk.lr 0.3 -> 0.2",
        "partition.experts 8 -> 4",
        "name 'mine' -> 'yours'",
    ]
    assert file.read_text() == text
    found.write()
    assert file.read_text().startswith('name = "yours"\n[trunk]\n# tried 0.5\nlr = 0.2 # enough\n')
    assert load_study(file) == found.study
    assert found.study.partition.experts == 4
    for said, why in (
        ("trunk.lrr=1", "unknown setting 'trunk.lrr'"),
        ("trunk.lr=-1", r"trunk\.lr = -1"),
        ("lr", "wanted table.key=value, such as"),
        ("a.b.c=1", "wanted table.key=value, such as"),
        ("trunk={epochs = 2}", r"wanted one of its settings, such as trunk\.KEY=VALUE"),
    ):
        with pytest.raises(ValueError, match=why):
            override(file, [said])
    assert load_study(file) == found.study


@pytest.mark.parametrize(
    ("send", "number"),
    [
        (os.killpg, signal.SIGINT),  # a terminal's Ctrl-C
        (os.kill, signal.SIGINT),
        (os.killpg, signal.SIGTERM),  # a batch system's end
    ],
)
def test_ctrl_c_ends_all_at_the_last_checkpoint_and_the_same_command_goes_on(file, started, send, number):
    process = started("backfill", "--all", "--study", file, "--workers", "2", "--set", "expert_training.epochs=2000")
    until(lambda: len(list(file.parent.glob("expert/*/.work-*/checkpoint.safetensors"))) == 2, process)
    for key in ("e000", "e001"):  # who goes on: the signal is not theirs, were they to hear it first
        os.kill(worker_of(file, key), number)
        until(
            saved_since(time.time_ns(), next(file.parent.glob(f"expert/{key}/.work-*/checkpoint.safetensors"))), process
        )
    send(process.pid, number)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, (out, errors)
    assert "1 not begun; expert:e000, expert:e001 ended at the last checkpoint. The same command goes on" in errors
    assert [line.split(maxsplit=1)[1] for line in out.splitlines()[-4:-1]] == ["stopped", "stopped", "not begun"]
    assert "Traceback" not in out + errors
    until(lambda: nobody_is_left(file), seconds=30)
    assert runs_of(file) == {"e000": "CANCELED", "e001": "CANCELED"}
    assert load_study(file).expert_training.epochs == 2000
    checkpoint = next(file.parent.glob("expert/e001/.work-*/checkpoint.safetensors")).stat().st_mtime_ns
    if (send, number) == (os.killpg, signal.SIGINT):
        states = json.loads(hardmoe("status", "--json", "--study", file).output)["assets"]
        assert {s["key"]: s["state"] for s in states if s["asset"] == "expert"} == dict.fromkeys(
            ("e000", "e001", "e002"), "missing"
        )
        again = started("backfill", "--experts", "e001", "--study", file)
        log = file.parent / "expert" / "e001"
        until(lambda: any(p.stat().st_mtime_ns > checkpoint for p in log.glob(".work-*/checkpoint.safetensors")), again)
        steps = [json.loads(line)["step"] for line in next(log.glob(".work-*/log.jsonl")).read_text().splitlines()]
        assert steps.count(min(steps)) == 1, "it began anew"
        again.send_signal(signal.SIGTERM)
        assert again.wait(60) == 130


def test_a_crash_a_kill_and_a_stop_are_named_and_nobody_is_left(file, started):
    process = started(
        *("backfill", "--all", "--study", file, "--workers", "3", "--set", "expert_training.epochs=5000"),
        HARDMOE_STALL_SECONDS="2",
        CUDA_VISIBLE_DEVICES="7,5",  # which this machine need not have
        TMPDIR=str(file.parent.parent),
    )
    until(lambda: len(list(file.parent.glob("expert/*/.work-*/checkpoint.safetensors"))) == 3, process)
    for key, how in (("e000", signal.SIGSEGV), ("e001", signal.SIGKILL), ("e002", signal.SIGSTOP)):
        os.kill(worker_of(file, key), how)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    leases = file.parent.parent / f"hardmoe-gpus-{os.getuid()}"
    names = sorted(path.name for path in leases.iterdir() if path.suffix != ".1")
    assert names == ["5.0", "5.gate", "7.0", "7.gate"]
    assert len(list(leases.glob("*.1"))) == 1, "of three trainings two share a GPU"
    assert "Error: expert:e000: its process ended: killed by signal 11 (a crash in native code)" in errors
    assert "Error: expert:e001: its process ended: killed by signal 9 (out of memory?)" in errors
    assert "Error: expert:e002: its process stood still for 2 s (stopped, or stuck), and was ended" in errors
    assert "0 made, 0 fresh, 3 failed" in out
    until(lambda: nobody_is_left(file), seconds=30)
    assert runs_of(file) == dict.fromkeys(("e000", "e001", "e002"), "FAILURE")
    assert all((file.parent / "logs" / f"expert.e00{k}.log").stat().st_size for k in range(3))
    states = json.loads(hardmoe("status", "--json", "--study", file).output)["assets"]
    assert {s["key"]: s["why"] for s in states if s["state"] == "failed"}["e002"].startswith("its process stood still")


BEATING = """
import os, sys
sys.path.insert(0, os.getcwd())
from moe_core.heartbeat import beat
beat(int(sys.argv[1]))
print("begun", flush=True)
{}
"""


@pytest.fixture
def beating(monkeypatch):
    """A process that beats while it does something, and its pulse."""
    monkeypatch.setenv("HARDMOE_STALL_SECONDS", "2")
    processes = []

    def begin(doing):
        ours, theirs = os.pipe()
        command = [sys.executable, "-c", BEATING.format(doing), str(theirs)]
        process = subprocess.Popen(command, pass_fds=[theirs], stdout=subprocess.PIPE)
        os.close(theirs)
        processes.append(process)
        assert process.stdout.readline() == b"begun\n"
        return process, Pulse(process.pid, ours)

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def test_a_long_computation_lives_a_stopped_process_does_not_and_neither_is_a_closed_pipe_a_beat(beating):
    busy, pulse = beating("7 ** 8_000_000")  # seconds in which no other thread of the process gets its turn
    idle, its = beating("import time; time.sleep(60)")
    while busy.poll() is None:
        assert not pulse.stands_still()
        assert not its.stands_still()
        time.sleep(0.05)
    idle.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    until(its.stands_still, seconds=20)
    assert time.monotonic() - began >= 0.9  # the limit, less the second since its last beat
    assert its.why == "stood still for 2 s (stopped, or stuck), and was ended"


def test_one_who_was_stopped_himself_does_not_take_others_for_dead(beating, monkeypatch):
    _, pulse = beating("import time; time.sleep(60)")
    pulse.limit = 30.0
    later = time.monotonic() + 3600
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert not pulse.stands_still()


@pytest.mark.parametrize("said", ["1", "soon", "nan"])
def test_seconds_to_stand_still_are_refused_where_they_are_nonsense(monkeypatch, said):
    monkeypatch.setenv("HARDMOE_STALL_SECONDS", said)
    with pytest.raises(ValueError, match=f"HARDMOE_STALL_SECONDS is '{said}': wanted seconds, at least 2"):
        stall_seconds()


def test_a_helper_of_a_joint_training_that_stands_still_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("HARDMOE_STALL_SECONDS", "2")
    helpers = _Helpers(tmp_path, [""])
    stuck = subprocess.Popen(["sleep", "60"])
    ours, theirs = os.pipe()
    helpers.running[0], helpers.pulses[0] = stuck, Pulse(stuck.pid, ours)

    def replaced():
        helpers.replace_killed()
        return helpers.killed

    until(replaced, seconds=30)
    os.close(theirs)
    assert stuck.poll() == -signal.SIGKILL
    assert helpers.running[0] is not stuck
    helpers.end(0)


def make_slowly(begun, go):
    def make(context, key, folder):
        begun.set()
        assert go.wait(30)
        (folder / "a").write_text("a")
        return StageOutput({"loss": 1.5, "seconds": 2.0, "training_images": 300})

    return Stage("slow", None, "1", (), lambda study: {}, lambda context, key: {}, make)


def test_who_waits_for_another_process_says_so_and_finds_what_it_made(tmp_path, monkeypatch):
    begun, go = threading.Event(), threading.Event()
    stage = make_slowly(begun, go)
    monkeypatch.setitem(GRAPH, "slow", stage)
    found, said = {}, []
    first = threading.Thread(target=lambda: found.update(first=build(Context(small_study(), tmp_path), stage)))
    first.start()
    assert begun.wait(30)
    context = Context(small_study(), tmp_path, lambda what: (said.append(what), go.set()))
    assert maker(context, "slow", None) == os.getpid()
    second = build(context, stage)
    first.join()
    assert said == [{"waits_for": os.getpid()}]
    assert (found["first"].reused, second.reused) == (False, True)
    assert maker(context, "slow", None) is None


def test_the_display_tells_steps_time_left_and_who_waits_for_whom(tmp_path):
    display = Display(Context(small_study(), tmp_path))
    (tmp_path / ".progress").mkdir()
    report = {"pid": 7, "run": "mine", "step": 50, "steps": 200, "loss": 2.5, "images_per_second": 100.0}
    (tmp_path / ".progress" / "expert.e000.json").write_text(json.dumps(report | {"images_seen": 1600}))
    (tmp_path / ".progress" / "expert.e001.json").write_text(json.dumps({"pid": 8, "run": "mine", "waits_for": 9}))
    (tmp_path / ".progress" / "expert.e002.json").write_text(json.dumps({"pid": 8, "run": "another's"}))
    (tmp_path / ".progress" / "trunk.json").write_text(
        json.dumps({"pid": 8, "run": "mine", "waits": "a GPU: 3 in use"})
    )
    runs = [Running(Task("expert", f"e00{k}"), "mine", time.monotonic()) for k in range(3)]
    runs.append(Running(Task("trunk", None), "mine", time.monotonic()))
    one, two, three, gpu, four = display.lines(runs, {"trunk": "is made by another process (9)"})
    assert one.split()[4:] == ["25", "%", "step", "50", "loss", "2.500", "100", "images/s", "48", "s", "left"]
    assert two.endswith("waits for another process (9)")
    assert three.endswith("waits for another process (8)")
    assert gpu.endswith("0 s  waits for a GPU: 3 in use")
    assert four == f"waiting {'trunk':24} is made by another process (9)"


def test_the_result_of_each_expert_is_a_line(tmp_path, monkeypatch):
    go = threading.Event()
    go.set()
    stage = make_slowly(threading.Event(), go)
    monkeypatch.setitem(GRAPH, "slow", stage)
    context = Context(small_study(), tmp_path)
    build(context, stage)
    summary, slow, other, last = Summary(), Task("slow", None), Task("expert", "e000"), Task("expert", "e001")
    events = []
    note(summary, Running(slow, "a", time.monotonic()), TaskResult(reused=True), lambda *said: events.append(said))
    note(summary, Running(other, "b", time.monotonic()), TaskResult("broken"), lambda *said: events.append(said))
    assert results_of(context, [slow, other, last], summary) == [
        f"{'slow':24} fresh    loss 1.500  2 s  150 images/s",
        f"{'expert:e000':24} failed   broken",
        f"{'expert:e001':24} not begun",
    ]
    assert [kind for kind, _, _ in events] == ["done", "failed"]


@pytest.mark.parametrize("command", [["backfill", "--all"], ["repartition"], ["run"]])
def test_ctrl_c_in_the_first_seconds_has_a_summary_and_leaves_no_request(file, monkeypatch, command):
    def begin(*_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # not heard any more

    monkeypatch.setattr("pipelines.run.scheduler.reap", begin)
    monkeypatch.setattr(
        "pipelines.run.scheduler.load_ahead", lambda: None
    )  # a fork server would stay, and serve other tests
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        done = hardmoe(*command, "--study", file)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert done.exit_code == 130, done.output
    assert "Aborted" not in done.output
    assert "Interrupted before anything was begun. The same command goes on from here." in done.output
    assert not (file.parent / current_partition.REQUEST).exists()


def test_ctrl_c_before_a_command_has_begun_is_one_line(file, monkeypatch):
    monkeypatch.setattr("moe_core.settings.load_study", lambda _: signal.raise_signal(signal.SIGINT))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        done = hardmoe("repartition", "--study", file)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (done.exit_code, done.output) == (130, "Interrupted. The same command goes on from here.\n")
