"""Webserver and daemon of `hardmoe ui` end with it, whichever of them is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import dagster as dg
import pytest

from helpers.command import hardmoe, write
from helpers.processes import until
from helpers.ui import daemons, free_port, processes, started_ui
from helpers.without_controls import quick_study
from moe_core.errors import LockHeld
from pipelines.instance import ui_lock

KEEP = """
import sys
from pipelines.ui.supervisor import run_together
sys.exit(run_together([[sys.executable, "-c", sys.argv[1], sys.argv[2]]]))
"""
LOCKED = """
import sys
from pipelines.instance.ui_lock import lock_ui
from pipelines.ui.supervisor import run_together
stubborn = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; print('up', flush=True)"
run_together([[sys.executable, "-c", stubborn + "; time.sleep(600)"]], lock=lock_ui(int(sys.argv[1])))
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

    def start(service="pass", before=""):
        command = [sys.executable, "-c", before + KEEP, SERVICES.format(service), str(tmp_path)]
        started.append(subprocess.Popen(command, start_new_session=True))
        everyone = until(lambda: found if len(found := processes(tmp_path)) == 5 else None)
        (watchdog,) = [pid for pid, words in everyone.items() if "pipelines.ui.supervisor" in words]
        children = Path(f"/proc/{watchdog}/task/{watchdog}/children").read_text().split()
        return started[-1], watchdog, int(children[0])

    yield start
    for process in started:
        process.kill()
        process.wait()
    for pid in processes(tmp_path):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("killed", [[0], [1], [2], [0, 1], [0, 2]])
def test_services_end_whichever_is_killed(kept, tmp_path, killed):
    command, *others = kept()
    time.sleep(0.3)  # for all to be past their imports
    for number in killed:
        os.kill([command.pid, *others][number], signal.SIGKILL)
    until(lambda: not processes(tmp_path), seconds=20)
    assert command.wait() != 0


# a shell without job control ignores Ctrl-C for what a script starts with &
IN_THE_BACKGROUND = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


@pytest.mark.parametrize("before", ["", IN_THE_BACKGROUND], ids=["", "in the background"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_services_end_in_order_at_a_signal(kept, tmp_path, number, before):
    command, *_ = kept(before=before)
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


def test_the_ui_of_a_killed_command_is_taken_until_the_last_of_its_services_has_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setattr(ui_lock, "WAIT_SECONDS", 0.5)
    command = [sys.executable, "-c", LOCKED, str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as first:
        assert first.stdout.readline() == b"up\n"
        first.kill()
    with pytest.raises(LockHeld, match=f"process {first.pid}; stop it first"):
        ui_lock.lock_ui(free_port())
    monkeypatch.setattr(ui_lock, "WAIT_SECONDS", 60.0)
    killer = threading.Timer(1.0, lambda: [os.kill(pid, signal.SIGKILL) for pid in processes(tmp_path)])
    killer.start()
    os.close(ui_lock.lock_ui(free_port()))  # waits
    killer.join()


@pytest.mark.slow
def test_the_ui_that_was_killed_leaves_no_daemon_and_starts_again_at_once(tmp_path):
    file, port = write(tmp_path / "cats", quick_study()), free_port()
    home = file.parent / "dagster"
    first = started_ui(file, port)
    (daemon,) = until(lambda: daemons(home))
    refused = hardmoe("ui", "--study", file, "--port", free_port(), check=False)
    assert f"already runs on {home}: http://127.0.0.1:{port}, process {first.pid}; stop it" in refused.stderr
    foreign = urllib.request.Request(f"http://127.0.0.1:{port}/server_info", headers={"Host": f"evil.example:{port}"})
    with pytest.raises(urllib.error.HTTPError, match="421"):
        urllib.request.urlopen(foreign)
    assert {place for pid in processes(home) for place in listens(pid)} == {("0100007F", port)}
    ticks_of_a_sensor_started_by_the_command(home, file)
    first.kill()
    first.wait()
    second = started_ui(file, port, after=daemon)
    assert len(daemons(home)) == 1
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
        (state,) = [state for state in dagster.all_instigator_state() if state.instigator_name == "drift"]
        until(lambda: dagster.get_ticks(state.instigator_origin_id, state.selector_id), seconds=180)


def listens(pid):
    """(address, port) at which a process takes connections, the address of 127.0.0.1 being 0100007F."""
    handles = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    rows = [
        row.split() for kind in ("tcp", "tcp6") for row in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]
    ]
    ours = [row[1].split(":") for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in handles]
    return {(address, int(port, 16)) for address, port in ours}
