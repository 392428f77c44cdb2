"""Backfills: plans, settings, two at once, Ctrl-C, workers that crash."""

import json
import os
import signal
import time
from pathlib import Path

import dagster as dg
import pytest

from helpers.command import write
from helpers.partitioned import hardmoe
from helpers.processes import mentions, until
from helpers.with_controls import small_study
from moe_core.store.layout import Layout
from moe_core.study_file import load_study, override


def runs_of(file):
    with dg.DagsterInstance.from_config(str(file.parent / "dagster")) as instance:
        return {run.tags["dagster/partition"]: run.status.value for run in instance.get_runs()}


def worker_of(file, key):
    return int(json.loads((file.parent / ".progress" / f"expert.{key}.json").read_text())["pid"])


def saved_since(then, checkpoint):
    return lambda: checkpoint.stat().st_mtime_ns > then


def nobody_is_left(file):
    return not [p for p in Path("/proc").glob("[0-9]*/environ") if mentions(p, str(file))]


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
    assert [step["why"] for step in plan["will_run"]] == ["forced"] * 3
    assert plan["estimate"]["not_measured_before"] == []
    events = [r.asset_materialization for r in found if not r.asset_materialization.metadata["reused"].value]
    took = {event.partition: event.metadata["step seconds"].value for event in events}
    assert {step["key"]: step["seconds"] for step in plan["will_run"]} == took
    assert plan["estimate"]["seconds"] == pytest.approx(sum(took.values()), abs=0.1)
    twice = hardmoe("backfill", "--all", "--dry-run", "--json", "--study", file, "--set", "expert_training.epochs=2")
    longer = json.loads(twice.stdout)
    assert [step["why"] for step in longer["will_run"]] == [
        "setting expert_training.epochs changed from 1.0 to 2.0"
    ] * 3
    wider = hardmoe("backfill", "--all", "--dry-run", "--study", file, "--set", "network.embedding=8")
    assert wider.stdout.count("waits for partition") == 3
    assert everything_under(file.parent) == before


def test_a_dry_run_of_a_new_study_says_what_waits_for_what_and_invents_no_figure(tmp_path):
    file = write(tmp_path, small_study())
    done = hardmoe("run", "--dry-run", "--until", "expert", "--study", file)
    rows = {line.split()[0]: line for line in done.output.splitlines()}
    assert rows["trunk"].endswith("missing")
    assert rows["expert:e001"].endswith("never run  waits for partition")
    assert "would run, 0 are fresh" in done.output
    assert [path.name for path in tmp_path.rglob("*")] == ["study.toml"]
    refused = hardmoe("run", "--json", "--study", file)
    assert (refused.exit_code, refused.output) == (
        1,
        "Error: --json goes with --dry-run: it is the plan as a document\n",
    )


def test_a_setting_is_changed_in_the_file_whose_comments_stay(tmp_path):
    file = tmp_path / "study.toml"
    text = 'name = "mine"\n[trunk]\n# tried 0.5\nlr = 0.3 # enough\n'
    file.write_text(text)
    found = override(file, ["trunk.lr=0.2", "partition.experts=4", "trunk.momentum=0.9", "name=yours"])
    assert found.changes == [
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
    assert (
        "1 not started; expert:e000, expert:e001 stopped at the last checkpoint. Run the same command to resume"
        in errors
    )
    assert [line.split(maxsplit=1)[1] for line in out.splitlines()[-4:-1]] == ["stopped", "stopped", "not started"]
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
        assert steps.count(min(steps)) == 1, "it began again"
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
    assert "Error: expert:e002: its process made no progress for 2 s (stopped or hung); killed" in errors
    assert "0 made, 0 fresh, 3 failed" in out
    until(lambda: nobody_is_left(file), seconds=30)
    assert runs_of(file) == dict.fromkeys(("e000", "e001", "e002"), "FAILURE")
    assert all((file.parent / "logs" / f"expert.e00{k}.log").stat().st_size for k in range(3))
    states = json.loads(hardmoe("status", "--json", "--study", file).output)["assets"]
    why = {s["key"]: s["why"] for s in states if s["state"] == "failed"}
    assert why["e002"].startswith("its process made no progress")


@pytest.mark.parametrize("command", [["backfill", "--all"], ["repartition"], ["run"]])
def test_ctrl_c_in_the_first_seconds_has_a_summary_and_leaves_no_request(file, monkeypatch, command):
    def begin(*_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # not heard any more

    monkeypatch.setattr("pipelines.run.scheduler.reap", begin)
    monkeypatch.setattr(
        "pipelines.run.pools.local.load_ahead", lambda: None
    )  # a fork server would stay, and serve other tests
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        done = hardmoe(*command, "--study", file)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert done.exit_code == 130, done.output
    assert "Aborted" not in done.output
    assert "Interrupted before anything was started. Run the same command to resume." in done.output
    assert not Layout(file.parent).request("partition").exists()


def test_ctrl_c_before_a_command_has_begun_is_one_line(file, monkeypatch):
    monkeypatch.setattr("pipelines.cli.common.load_study", lambda _: signal.raise_signal(signal.SIGINT))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        done = hardmoe("repartition", "--study", file)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (done.exit_code, done.output) == (130, "Interrupted. Run the same command to resume.\n")
