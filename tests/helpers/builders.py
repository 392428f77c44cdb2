"""Processes that build artifacts in a place, each with checkpoints: what is killed, stopped and run at once."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from moe_core.errors import HardmoeError
from moe_core.store.artifact import Spec, StageOutput
from moe_core.store.cache import Cache
from moe_core.store.files import write_bytes
from moe_core.store.leases import Pace, exclusive, shared
from moe_core.store.objects import Objects
from moe_core.store.places import place_of

STEPS = 6
ROOT = Path(tempfile.gettempdir(), "hardmoe-builders")  # of this machine
CHECKPOINT = "checkpoint.safetensors"
started = []  # processes
STOP, CONTINUE = signal.SIGSTOP, signal.SIGCONT
QUICK = Pace(beat=0.2, ttl=2, wait=0.2)  # seconds
TESTS = Path(__file__).parents[1]


def spec(key="e000"):
    return Spec("expert", key, "1", {"steps": STEPS}, {})


def state_at(step):
    """What a checkpoint of that step has."""
    state = b"start"
    for number in range(step):
        state = hashlib.sha256(state + b"%d" % number).digest()
    return state


def build(place, key="e000", root=ROOT, pause=0.0, with_lease=True, told=lambda *words: None):
    """As a stage is built: found, or computed from the newest checkpoint on and committed."""
    store, plan = Objects(place, root), spec(key)
    if not with_lease:
        return store.make(plan, lambda folder: filled(folder, state_at(STEPS)))

    def write(folder):
        with store.work(plan) as work:
            start, state = checkpoint(work)
            told("start", start)
            for step in range(start, STEPS):
                state = hashlib.sha256(state + b"%d" % step).digest()
                time.sleep(pause)
                save(work, step + 1, state)
                told("step", step + 1)
        return filled(folder, state)

    with store.building(plan, pace=QUICK):
        return store.find(plan) or store.make(plan, write)


def checkpoint(work):
    """(steps done, state) of what earlier attempts left."""
    file = work.folder / CHECKPOINT
    if not file.exists():
        return 0, state_at(0)
    saved = json.loads(file.read_bytes())
    return saved["step"], bytes.fromhex(saved["state"])


def save(work, step, state):
    write_bytes(work.folder / CHECKPOINT, json.dumps({"step": step, "state": state.hex()}).encode())
    work.save()


def filled(folder, state):
    (folder / "inner").mkdir()
    (folder / "inner" / "weights.bin").write_bytes(state * 1000)
    (folder / "note.txt").write_bytes(b"")
    return StageOutput({"steps": STEPS})


def is_right(made):
    """Whether an artifact is the one that was to be built."""
    weights = made.folder("inner") / "weights.bin"
    return weights.read_bytes() == state_at(STEPS) * 1000 and made.file("note.txt").read_bytes() == b""


def start(place, cache, key="e000", fault="", endpoint="", **more):
    """Another process that builds; `fault` is a HARDMOE_FAULT."""
    order = {"uri": place.uri, "options": getattr(place, "options", {}), "cache": str(cache), "key": key, **more}
    if endpoint:
        order["options"] = {**order["options"], "endpoint": endpoint}
    command = [sys.executable, "-W", "error", "-m", "helpers.builders", json.dumps(order)]
    environment = {"PYTHONPATH": f"{TESTS}:{TESTS.parent}", "PATH": "/usr/bin:/bin", "HARDMOE_FAULT": fault}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started.append(subprocess.Popen(command, env=environment, cwd=TESTS, text=True, **pipes))
    return started[-1]


def until_it_stops(process):
    """Waits until a failpoint stopped a process."""
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])


def end_all():
    """Ends what a test that failed left."""
    for process in started:
        process.kill()
        process.communicate()
    started.clear()


def together(processes):
    """Lets processes that were started with `wait` go at once; returns what each said, in lines."""
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.communicate()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return [said(process) for process in processes]


def said(process):
    """All lines of a process that is to end well."""
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out.splitlines()


def main():
    order = json.loads(sys.argv[1])
    place = place_of(order["uri"], order["options"], Cache(Path(order["cache"])), 60)
    told = lambda *words: print(*words, flush=True)  # noqa: E731
    if order.get("wait"):
        told("ready")
        sys.stdin.readline()
    try:
        if name := order.get("hold") or order.get("share"):
            with (exclusive if order.get("hold") else shared)(place, name, pace=QUICK) as lease:
                told("held")
                sys.stdin.readline()
                lease.check()
            return
        root = Path(order["cache"], "root")
        made = build(place, order["key"], root, order.get("pause", 0.0), order.get("with_lease", True), told)
    except HardmoeError as error:
        told(type(error).__name__, error)
    else:
        told("made", made.base, made.content_hash)


if __name__ == "__main__":
    main()
