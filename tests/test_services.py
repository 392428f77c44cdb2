"""Webserver and daemon of `hardmoe ui` end with it, whoever of them is killed."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import dagster as dg
import pytest

from helpers.command import hardmoe, write
from helpers.ui import free_port, processes, started_ui, until
from helpers.without_controls import small_study
from pipelines import instance

KEEP = """
import sys
from pipelines.ui.services import keep
sys.exit(keep([[sys.executable, "-c", sys.argv[1], sys.argv[2]]]))
"""
# as `dagster dev`: SIGTERM is heard as SIGINT, which ends the services in order
SERVICES = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
service = [sys.executable, "-c", "import signal, sys, time; {}; time.sleep(600)", sys.argv[1]]
both = [subprocess.Popen(service), subprocess.Popen(service)]
try:
    time.sleep(600)
except KeyboardInterrupt:
    open(sys.argv[1] + "/in-order", "w").close()
    [one.send_signal(signal.SIGINT) for one in both]
    [one.wait() for one in both]
"""
STUBBORN = "signal.signal(2, signal.SIG_IGN); signal.signal(15, signal.SIG_IGN)"


@pytest.fixture
def kept(tmp_path):
    """Starts a command that keeps two services, and gives its process, the watchdog's, the services' parent's."""
    started = []

    def start(service="pass"):
        command = [sys.executable, "-c", KEEP, SERVICES.format(service), str(tmp_path)]
        started.append(subprocess.Popen(command, start_new_session=True))
        everyone = until(lambda: found if len(found := processes(tmp_path)) == 5 else None)
        (watchdog,) = [pid for pid, words in everyone.items() if "pipelines.ui.services" in words]
        children = Path(f"/proc/{watchdog}/task/{watchdog}/children").read_text().split()
        return started[-1], watchdog, int(children[0])

    yield start
    for process in started:
        process.kill()
        process.wait()
    for pid in processes(tmp_path):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("killed", [[0], [1], [2], [0, 1], [0, 2]])
def test_services_end_whoever_is_killed(kept, tmp_path, killed):
    command, *others = kept()
    time.sleep(0.3)  # for all to be past their imports
    for number in killed:
        os.kill([command.pid, *others][number], signal.SIGKILL)
    until(lambda: not processes(tmp_path), seconds=20)
    assert command.wait() != 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_services_end_in_order_at_a_signal(kept, tmp_path, number):
    command, *_ = kept()
    time.sleep(0.3)
    command.send_signal(number)
    assert command.wait(20) == 0
    assert processes(tmp_path) == {}
    assert (tmp_path / "in-order").exists()


def test_a_second_signal_kills_services_that_do_not_end(kept, tmp_path):
    command, *_ = kept(STUBBORN)
    time.sleep(0.5)
    command.send_signal(signal.SIGINT)
    until((tmp_path / "in-order").exists)
    assert len(processes(tmp_path)) == 5
    command.send_signal(signal.SIGINT)
    assert command.wait(20) == 0
    until(lambda: not processes(tmp_path))


def test_a_daemon_of_the_instance_that_runs_here_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setattr(instance, "LAST_SECONDS", 0.5)
    pretends = [sys.executable, "-c", "input()", "dagster._daemon"]
    with subprocess.Popen(pretends, stdin=subprocess.PIPE) as daemon:
        until(lambda: instance.daemons_here(tmp_path) == [daemon.pid])
        assert instance.daemons_here(tmp_path / "other") == []
        with pytest.raises(ValueError, match=rf"a daemon of .* runs on this machine already: process {daemon.pid}; "):
            instance.hold_ui(free_port())
        daemon.communicate(b"\n")
    os.close(instance.hold_ui(free_port()))


@pytest.mark.slow
def test_the_ui_that_was_killed_leaves_no_daemon_and_starts_again_at_once(tmp_path):
    file, port = write(tmp_path / "cats", small_study()), free_port()
    home = file.parent / "dagster"
    first = started_ui(file, port)
    (daemon,) = until(lambda: instance.daemons_here(home))
    refused = hardmoe("ui", "--study", file, "--port", free_port(), check=False)
    assert f"already: http://127.0.0.1:{port}, process {first.pid}" in refused.stderr
    foreign = urllib.request.Request(f"http://127.0.0.1:{port}/server_info", headers={"Host": f"evil.example:{port}"})
    with pytest.raises(urllib.error.HTTPError, match="421"):
        urllib.request.urlopen(foreign)
    assert {place for pid in processes(home) for place in listens(pid)} == {("0100007F", port)}
    ticks_of_a_sensor_started_by_the_command(home, file)
    first.kill()
    first.wait()
    second = started_ui(file, port, after=daemon)
    assert len(instance.daemons_here(home)) == 1
    second.send_signal(signal.SIGTERM)
    assert second.wait(90) == 0
    assert processes(file.parent) == {}


def ticks_of_a_sensor_started_by_the_command(home, file):
    """The code location has the same name in workspace.yaml: else the daemon knows no such sensor."""
    environment = os.environ | {"DAGSTER_HOME": str(home), "HARDMOE_STUDY": str(file)}
    command = [sys.executable, "-m", "dagster", "sensor", "start", "drift", "-w", "workspace.yaml"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with dg.DagsterInstance.from_config(str(home)) as dagster:
        (state,) = dagster.all_instigator_state()
        until(lambda: dagster.get_ticks(state.instigator_origin_id, state.selector_id), seconds=180)


def listens(pid):
    """(address, port) at which a process takes connections, the address of 127.0.0.1 being 0100007F."""
    handles = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    rows = [
        row.split() for kind in ("tcp", "tcp6") for row in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]
    ]
    ours = [row[1].split(":") for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in handles]
    return {(address, int(port, 16)) for address, port in ours}
