"""What runs on the nodes of a Ray cluster: a process that takes tasks, and what a node says of itself.

Loads neither torch nor Dagster before a task is to be run.
"""

import hashlib
import os
import platform
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from pkgutil import resolve_name

import moe_core
from moe_core.processes import pid_of, process_name, processor_seconds, this_process
from moe_core.settings import Study
from moe_core.store.layout import DAGSTER_SETTINGS
from moe_core.store.locks import is_held
from pipelines.run.task import Task, TaskResult

RUNNER = "pipelines.run.worker:Runner"  # it loads torch and Dagster
PACKAGES = ("moe_core", "assets", "pipelines")
VERSIONS = ("hardmoe", "torch", "dagster", "pylance")  # that are to be the same on all nodes
WATCH_SECONDS = 1.0  # in which a process that computes uses some processor time


@dataclass(frozen=True)
class About:
    """What a process on a node finds there."""

    host: str
    process: str
    versions: Mapping[str, str]
    processor: str
    locks: tuple[bool | None, ...]  # whether each is seen as held; None: the file is not there
    dagster: str  # hash of dagster.yaml

    def problem(self, ours: "About", locks: Sequence[Path]) -> str:
        """What is not as it is where the command runs, and what to do; "" where all is."""
        for name, wanted in ours.versions.items():
            if self.versions[name] != wanted:
                return f"has {name} {self.versions[name]}, this command {wanted}: install the same on all nodes"
        for path, held in zip(locks, self.locks, strict=True):
            if held is None:
                return f"does not see {path.parent}: share the folder of the study with all nodes, at the same path"
            if not held:
                return f"does not see locks in {path.parent}: see the file systems in docs/how-to/several-machines.md"
        if self.dagster != ours.dagster:
            return f"has no or another {os.environ['DAGSTER_HOME']}/{DAGSTER_SETTINGS}: put the same file there"
        return ""


def about(locks: Sequence[Path]) -> About:
    """Of the process that calls it; `locks` are held by the command."""
    seen = tuple(is_held(path) for path in locks)
    return About(socket.gethostname(), this_process(), _installed(), _processor(), seen, _dagster_settings())


def _installed() -> dict[str, str]:
    found = {"Python": ".".join(platform.python_version_tuple()[:2]), "code of hardmoe": code_hash()}
    for name in VERSIONS:
        with suppress(PackageNotFoundError):
            found[name] = version(name).partition("+")[0]  # not the build: of torch's, one for the CPU has a suffix
    return {name: found.get(name, "none") for name in ("Python", *VERSIONS, "code of hardmoe")}


@cache
def code_hash() -> str:
    """Twelve hexadecimal digits of all our modules."""
    folder = Path(moe_core.__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(file for package in PACKAGES for file in (folder / package).rglob("*.py")):
        digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _dagster_settings() -> str:
    with suppress(OSError, KeyError):
        return hashlib.sha256((Path(os.environ["DAGSTER_HOME"]) / DAGSTER_SETTINGS).read_bytes()).hexdigest()
    return ""


class Worker:
    """A process that runs one task after the other, in a thread, and answers `beat` in another."""

    def __init__(self, secrets: Mapping[str, str], threads_of_ray: bool, hide_gpus: bool) -> None:
        """`threads_of_ray`: OMP_NUM_THREADS is Ray's, not the user's. All before torch is loaded."""
        for name, value in secrets.items():
            os.environ.setdefault(name, value)
        if threads_of_ray:
            os.environ.pop("OMP_NUM_THREADS", None)  # so that libraries compute as in the workers of one machine
        if hide_gpus:  # from this process alone: what it starts would inherit an environment that Ray was given
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._runner = resolve_name(RUNNER)()

    def about(self, locks: Sequence[Path]) -> tuple[About, str]:
        """(what it finds on its node, Ray's name of the node)"""
        import ray

        return about(locks), ray.get_runtime_context().get_node_id()

    def run(self, task: Task, run_id: str, log: Path, study: Study) -> TaskResult:
        result: TaskResult = self._runner.run(task, run_id, log, study)
        return result

    def beat(self) -> None:
        """Returns: the process is not stopped."""


def end_if_idle(process: str) -> bool:
    """Kills a process of this node that answers no beat, unless it computes. Returns whether it is gone."""
    pid = pid_of(process)
    before = processor_seconds(pid)
    time.sleep(WATCH_SECONDS)
    with suppress(ProcessLookupError):
        if process_name(pid) == process:
            if processor_seconds(pid) != before:
                return False
            os.kill(pid, signal.SIGKILL)
    return True
