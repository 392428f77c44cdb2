"""Kills `hardmoe run` over and over: `kills.py FOLDER SEED [--points N] [--random N] [--locked] [--command]`.

After each kill whatever can be read must be complete, no process and no pool slot may be left, and the next run goes
on; whenever a graph is complete, it must equal an undisturbed run's, which is remembered here, outside the store. The
last line of output is what was done, as JSON.

Runs are forked from a process that has torch and dagster loaded; with --command they are the command itself.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path

TESTS = Path(__file__).parents[1]
POINTS = [
    *(f"rows.{what}" for what in ("written", "checked", "committed", "tagged")),
    *(f"artifact.{what}" for what in ("begun", "written", "manifest", "renamed", "committed")),
    *(f"file.{what}" for what in ("opened", "half", "written", "synced", "renamed")),
    *(f"event.{what}" for what in ("due", "recorded")),
]
ABOUT = ["checkpoint", "artifact.json", "weights", ""]  # files in whose writing a process dies
LONG = 1200.0  # seconds of a run that does not end: machines may be busy
END_SECONDS = 60.0  # for all processes of a killed command to be gone


def study(posts=400, shards=2):
    from moe_core.recipes import demo
    from moe_core.settings import Data, Network, Partition, Source, Training

    quick = Training(epochs=2, batch_size=32, lr=0.2, flip=False, crop=1, checkpoint_seconds=0.01)
    base = demo()
    return base.model_copy(
        update={
            "name": "tiny",
            "source": Source(format="synthetic", posts=posts, shards=shards),
            "data": Data(image_size=16, min_posts_per_tag=3, test=0.2, validation=0.1),
            "network": Network(widths=(4, 8), depths=(1, 1), embedding=16),
            "trunk": quick,
            "expert_training": quick,
            "partition": Partition(experts=2, pca=8),
            "evaluation": base.evaluation.model_copy(update={"controls": False, "bootstrap": 20}),
        }
    )


@dataclass
class Kills:
    """The study, how its runs are started, and what was done to them."""

    folder: Path
    draw: random.Random
    command: bool
    wanted: dict = field(default_factory=dict)  # hashes of an undisturbed run
    seconds: float = 0.0  # that it took
    done: Counter = field(default_factory=Counter)

    @property
    def root(self):
        return self.folder / "study"

    @property
    def file(self):
        return self.root / "study.toml"

    @property
    def fault(self):
        return self.folder / "fault"

    def prepare(self):
        from moe_core.study_file import dump_study

        self.root.mkdir(parents=True)
        self.file.write_text(dump_study(study(300, 1)), "utf-8")
        os.environ |= {
            "HARDMOE_STUDY": str(self.file),
            "DAGSTER_HOME": str(self.root / "dagster"),
            "HARDMOE_THREADS": "1",
            "KILLS_FAULT_FILE": str(self.fault),
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        }
        multiprocessing.set_forkserver_preload(["helpers.killed"])
        if not self.command:
            forkserver.ensure_running()
        began = time.monotonic()
        run = self.start(2)
        assert run.wait() == 0, self.log()
        self.seconds = time.monotonic() - began
        self.wanted = self.results()
        self.check_dagster()
        self.wipe()

    def start(self, workers, fault=None):
        return (Command if self.command else Forked)(self, workers, fault)

    def log(self):
        return (self.folder / "log").read_text()[-4000:]

    def wipe(self):
        from moe_core.tables.versions import forget_opened

        for path in self.root.iterdir():
            if path != self.file:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        forget_opened()

    def context(self):
        from moe_core.study_file import load_study
        from moe_core.workspace import open_study

        return open_study(load_study(self.file), self.root)

    def results(self):
        """Digest of every artifact, and of the rows that posts name."""
        from moe_core.tables.lance_tags import lance_tag_of
        from moe_core.tables.location import tables_in
        from moe_core.tables.reading import read_rows

        context = self.context()
        graph = context.planner.graph
        wanted = [graph[name] for name in graph.usual if not graph[name].control]
        found = {
            f"{stage.name}:{key}": context.need(stage.name, key).content_hash
            for stage in wanted
            for key in context.planner.keys(stage.name)
        }
        for table in tables_in(self.root):
            for shard in context.shards:
                lance_tag = lance_tag_of(shard.key, context.version("posts", shard.key))
                rows = read_rows(table, lance_tag, shard.key, ["id", "position"])
                found[f"{table.name}:{shard.key}"] = hashlib.sha256(repr(rows.to_pydict()).encode()).hexdigest()
        return found

    def artifacts(self):
        """How many artifacts there are: each is complete, and every file of it is the one that was written."""
        from moe_core.maintenance.verify import Damage, verify

        found = list(verify(self.context()))
        damaged = [one for one in found if isinstance(one, Damage)]
        assert not damaged, damaged
        return len(found)

    def check_dagster(self):
        """After what `hardmoe run` does first, no run seems to run, and none holds a slot of a pool."""
        import dagster as dg

        from pipelines.instance.reap import reap

        if not (self.root / "dagster" / "dagster.yaml").exists():
            return
        with dg.DagsterInstance.from_config(str(self.root / "dagster")) as instance:
            reap(instance, self.root, study().name)
            open_states = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING]
            assert not instance.get_runs(dg.RunsFilter(statuses=open_states))
            for pool in instance.event_log_storage.get_concurrency_keys() | {"trainer"}:
                info = instance.event_log_storage.get_concurrency_info(pool)
                assert (info.active_slot_count, info.pending_step_count) == (0, 0), pool

    def check(self):
        artifacts = self.artifacts()
        self.check_dagster()
        print(f"{artifacts} artifacts after {dict(self.done)}", flush=True)

    def complete(self):
        """A graph was made in spite of everything: it is what it would have been."""
        found = self.results()
        wrong = {name for name in self.wanted if self.wanted[name] != found[name]}
        assert not wrong, f"other results after kills: {sorted(wrong)}"
        self.done["graphs completed"] += 1
        self.wipe()

    def at_points(self, count):
        """Dies at every named point, at one pass or another, in a worker or in what starts them; `count` deaths."""
        points = [POINTS[number % len(POINTS)] for number in range(count)]
        for name in points:
            about = self.draw.choice(ABOUT) if name.startswith("file.") else ""
            for passes in (self.draw.randint(1, 3) if name.startswith(("artifact.", "event.")) else 1, 1):
                run = self.start(1, f"kill {name} {passes} {about}".strip())
                code = run.wait()
                run.gone()
                if code == -signal.SIGKILL or (code == 1 and "killed by signal 9" in self.log()):
                    self.done[name] += 1
                    self.check()
                    break
                assert code == 0, self.log()
                self.done["runs that did not come to their point"] += 1
                self.fault.unlink(missing_ok=True)
                self.complete()
                about = ""
            else:
                raise AssertionError(f"no run came to {name} {about}")

    def at_random(self, count):
        """SIGKILL at random moments: of the whole tree at once, of the command alone, or of one worker."""
        killed = 0
        while killed < count:
            run = self.start(2)
            ended = run.wait(self.draw.uniform(0.0, self.seconds / 2))
            if ended is None:
                how = self.draw.choice(["tree", "command", "worker"])
                if run.kill(how):
                    killed += 1
                    self.done[f"random: {how}"] += 1
                if how == "worker":
                    assert run.wait() in (0, 1), self.log()
                    ended = run.wait()
            run.gone()
            if ended == 0:
                self.complete()
            else:
                self.check()
        self.finish()

    def finish(self):
        """Two runs at once make what is left."""
        for run in [self.start(1), self.start(1)]:
            assert run.wait() == 0, self.log()
        self.complete()

    def locked(self):
        """Another program holds Dagster's data base: the run says so in a line, or goes on when it is free."""
        run = self.start(1)
        assert run.wait() == 0, self.log()
        (base,) = (self.root / "dagster").rglob("runs.db")
        for expert in self.root.glob("expert/*"):
            shutil.rmtree(expert)
        held = sqlite3.connect(base)
        held.execute("BEGIN EXCLUSIVE")
        run = self.start(1)
        ended = run.wait(120)
        held.close()
        assert ended == 1, self.log()
        assert "Dagster could not record the run: (sqlite3.OperationalError) database is locked" in self.log()
        assert "Traceback" not in self.log()
        run.gone()
        self.done["data base locked"] += 1
        self.finish()


class Forked:
    """A run in a process of the fork server, with workers of the same one."""

    def __init__(self, kills, workers, fault):
        from helpers import killed

        if fault:
            kills.fault.write_text(fault)
        (kills.folder / "log").unlink(missing_ok=True)
        address = forkserver._forkserver._forkserver_address
        self.process = multiprocessing.get_context("forkserver").Process(
            target=killed.run, args=(address, workers, kills.folder / "log")
        )
        self.process.start()

    def wait(self, seconds=LONG):
        self.process.join(seconds)
        assert self.process.exitcode is not None or seconds < LONG, "a run that does not end"
        return self.process.exitcode

    def tree(self):
        server = forkserver._forkserver._forkserver_pid
        return [pid for pid in processes() if parent_of(pid) == server]

    def kill(self, how):
        return kill(self.process.pid, [pid for pid in self.tree() if pid != self.process.pid], how)

    def gone(self):
        wait_until_gone(self.tree)


class Command:
    """`hardmoe run` as a user starts it."""

    def __init__(self, kills, workers, fault):
        environment = os.environ | ({"HARDMOE_FAULT": fault} if fault else {})
        with open(kills.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.cli.main", "run", "--workers", str(workers)],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def wait(self, seconds=LONG):
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            assert seconds < LONG, "a run that does not end"
            return None

    def tree(self):
        return [pid for pid in processes() if session_of(pid) == self.process.pid]

    def kill(self, how):
        servers = [pid for pid in self.tree() if "forkserver" in command_of(pid)]
        workers = [pid for pid in self.tree() if parent_of(pid) in servers]
        others = self.tree() if how == "tree" else workers
        return kill(self.process.pid, [pid for pid in others if pid != self.process.pid], how)

    def gone(self):
        wait_until_gone(self.tree)


def kill(command, others, how):
    """Whether there was what was to be killed."""
    victims = {"tree": [command, *others], "command": [command], "worker": others[-1:]}[how]
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return bool(victims)


def wait_until_gone(tree):
    deadline = time.monotonic() + END_SECONDS
    while left := tree():
        assert time.monotonic() < deadline, f"orphans: {[command_of(pid) for pid in left]}"
        time.sleep(0.02)


def processes():
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _stat(pid, place):
    try:
        said = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if said[0] == "Z" else int(said[place])


def parent_of(pid):
    return _stat(pid, 1)


def session_of(pid):
    return _stat(pid, 3)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("--random", type=int, default=0, dest="moments")
    parser.add_argument("--points", type=int, default=0)
    parser.add_argument("--locked", action="store_true")
    parser.add_argument("--command", action="store_true")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    kills = Kills(options.folder, random.Random(options.seed), options.command)
    began = time.monotonic()
    kills.prepare()
    if options.locked:
        kills.locked()
    kills.at_points(options.points)
    kills.at_random(options.moments)
    took = {"undisturbed": round(kills.seconds, 1), "all": round(time.monotonic() - began, 1)}
    print(json.dumps({"done": kills.done, "seconds": took}))


if __name__ == "__main__":
    main()
