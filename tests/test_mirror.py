"""What a step prints is mirrored into the log of its run by a process that nothing leaves behind."""

import os
import signal
import subprocess
import sys

import pytest

from helpers.processes import until
from moe_core.processes import alive, process_name

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="GNU's tail")
PROGRAM = """
import sys, time
from pipelines.run.mirror import mirrored
with mirrored(sys.argv[1], sys.stdout) as (number, _):
    print(number, file=sys.stderr, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def running(tmp_path):
    """(process, number of its tail, what it prints, file that it mirrors)"""
    file, out = tmp_path / "step.out", tmp_path / "run.log"
    file.write_text("one\n")
    with open(out, "w") as log:
        command = [sys.executable, "-c", PROGRAM, str(file)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.PIPE, text=True)
    yield process, int(process.stderr.readline()), out, file
    process.kill()
    process.wait()
    process.stderr.close()  # which the tail held, too


def test_what_is_written_meanwhile_is_copied(running):
    process, _, out, file = running
    with open(file, "a") as more:
        more.write("two\n")
    until(lambda: out.read_text() == "one\ntwo\n", process)


def test_a_killed_step_leaves_no_process(running):
    process, tail, _, _ = running
    name = process_name(tail)
    assert alive(name)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until(lambda: not alive(name), seconds=20)
