"""Signs of life between parent and child, and why a child ended."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest

from helpers.processes import until
from moe_core.engine.nodes import ThisMachine
from moe_core.errors import BadSetting
from moe_core.processes import Child, Heartbeat, exit_reason, stall_seconds, start_child
from moe_core.stages.experts.joint import Helpers

SENDING = """
import os, sys
sys.path.insert(0, os.getcwd())
from moe_core.processes import send_heartbeat
send_heartbeat(int(sys.argv[1]))
print("started", flush=True)
{}
"""


@pytest.fixture
def sending(monkeypatch):
    """A process that sends a heartbeat while it does something."""
    monkeypatch.setenv("HARDMOE_STALL_SECONDS", "2")
    processes = []

    def start(doing):
        ours, theirs = os.pipe()
        command = [sys.executable, "-c", SENDING.format(doing), str(theirs)]
        process = subprocess.Popen(command, pass_fds=[theirs], stdout=subprocess.PIPE)
        os.close(theirs)
        processes.append(process)
        assert process.stdout.readline() == b"started\n"
        return process, Heartbeat(process.pid, ours)

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_long_computation_is_not_stalled_and_a_stopped_process_is(sending):
    busy, its = sending("7 ** 8_000_000")  # seconds in which no other thread of the process gets its turn
    idle, heartbeat = sending("import time; time.sleep(60)")
    while busy.poll() is None:
        assert not its.is_stalled()
        assert not heartbeat.is_stalled()
        time.sleep(0.05)
    idle.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    until(heartbeat.is_stalled, seconds=20)
    assert time.monotonic() - began >= 0.9  # the limit, less the second since its last sign of life
    assert heartbeat.reason == "no progress for 2 s (stopped or hung); killed"


def test_a_parent_that_was_stopped_itself_does_not_take_its_children_for_stalled(sending, monkeypatch):
    _, heartbeat = sending("import time; time.sleep(60)")
    heartbeat.limit = 30.0
    later = time.monotonic() + 3600
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert not heartbeat.is_stalled()


def test_a_child_whose_heartbeat_nobody_hears_any_more_ends(sending):
    process, heartbeat = sending("import time; time.sleep(60)")
    os.close(heartbeat.pipe)
    assert process.wait(10) == 1


@pytest.mark.parametrize("value", ["1", "soon", "nan"])
def test_seconds_until_a_stall_are_refused_where_they_are_nonsense(monkeypatch, value):
    monkeypatch.setenv("HARDMOE_STALL_SECONDS", value)
    with pytest.raises(BadSetting, match=f"HARDMOE_STALL_SECONDS is '{value}': wanted seconds, at least 2"):
        stall_seconds()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (-9, "killed by signal 9 (out of memory?)"),
        (-11, "killed by signal 11 (a crash in native code)"),
        (-7, "killed by signal 7 (a file was cut short while it was mapped into memory, or its disk is full or gone)"),
        (-15, "killed by signal 15"),
    ],
)
def test_an_exit_code_in_words(code, reason):
    assert exit_reason(code) == reason


def test_a_child_reports_how_it_ended(tmp_path, monkeypatch):
    (tmp_path / "child.py").write_text(
        "import sys\nfrom moe_core.processes import obey_parent\nobey_parent(int(sys.argv[1]), int(sys.argv[2]))\n"
        "print('started', flush=True)\nsys.exit(int(input()))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    for answer, reason in (("0", ""), ("3", "exit code 3")):
        with closing(start_child("child", **pipes)) as child:
            assert child.process.stdout.readline() == "started\n"
            for heard_by_the_parent_alone in (signal.SIGINT, signal.SIGTERM):
                child.process.send_signal(heard_by_the_parent_alone)
            assert (child.exit_code(), child.failure()) == (None, "")
            child.process.stdin.write(answer + "\n")
            child.process.stdin.flush()
            child.process.wait(10)
            assert (child.exit_code(), child.failure()) == (int(answer), reason)
    with closing(start_child("child", environment={"PYTHONPATH": ""}, **pipes)) as child:
        assert child.process.wait(10) == 1, "what is given for its environment replaces what is there"


def test_a_helper_of_a_joint_training_that_stalls_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("HARDMOE_STALL_SECONDS", "2")
    ours, theirs = os.pipe()
    process = subprocess.Popen(["sleep", "60"], text=True)
    hung = Child(process, Heartbeat(process.pid, ours))
    with closing(Helpers(tmp_path, ThisMachine(), [""], {0: hung})) as helpers:

        def replaced():
            helpers.replace_killed()
            return helpers.killed

        until(replaced, seconds=30)
        os.close(theirs)
        assert hung.process.poll() == -signal.SIGKILL
        assert hung.failure() == "no progress for 2 s (stopped or hung); killed"
        assert helpers.members[0] is not hung
