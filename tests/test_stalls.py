"""Heartbeats: a long computation lives, a stopped process does not."""

import os
import signal
import subprocess
import sys
import time

import pytest

from helpers.partitioned import until
from moe_core.heartbeat import Pulse, stall_seconds
from moe_core.stages.experts.joint import _Helpers

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
