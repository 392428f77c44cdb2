"""A Ray cluster as the command sees it: connecting, what its nodes can hold and must have, what its processes get.

Ray is imported in functions: without the extra `ray` all else works.
"""

import logging
import os
import signal
import socket
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, chdir, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.storage.runs import SqliteRunStorage

import moe_core
from moe_core import threads
from moe_core.errors import BadSetting, MissingLibrary
from moe_core.settings import Cluster, Study, ray_address
from moe_core.store.layout import DAGSTER_SETTINGS, Layout
from moe_core.store.locks import exclusive
from pipelines.instance.home import NO_TELEMETRY
from pipelines.instance.secrets import is_secret
from pipelines.run.pools.ray_node import About, about

CONNECT_SECONDS = 10.0  # Ray itself tries for minutes
NODE_SECONDS = 120.0  # for a node to start a process and describe itself
CURRENT = "ray/ray_current_cluster"  # in the temporary folder: the address of what `ray start` started here
PAGE = "docs/how-to/ray.md"
PLAIN = (*(name for name in threads.VARIABLES if name != threads.SHARE), "DAGSTER_HOME", NO_TELEMETRY)
KEYS = "AWS_"  # variables that begin so
RANKS_ON_GPUS = "HARDMOE_RANKS_ON_GPUS"  # set for a process of a run on GPUs: its ranks do not go on without


def connect(cluster: Cluster) -> str:
    """Connects this process to the cluster, once, and returns its address.

    Raises MissingLibrary without Ray, and BadSetting where no cluster answers, or refuses.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingLibrary("the engine ray needs Ray: pip install 'hardmoe[ray]'") from error
    if not ray.is_initialized():
        address = _address(cluster)
        _knock(address)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            # Ray lets workers import from the current folder of the command: that is to be the one of our packages
            with chdir(Path(moe_core.__file__).parents[1]):
                ray.init(
                    cluster.address if _is_here(cluster) else address, log_to_driver=False, logging_level=logging.ERROR
                )
        except Exception as error:
            why = " ".join(str(error).split())[:600]
            if isinstance(error, ConnectionError):
                why += "; where it wants a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
            raise BadSetting(f"the Ray cluster at {address} refuses this command: {why}") from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray sets its own
    return str(ray.get_runtime_context().gcs_address)


def _is_here(cluster: Cluster) -> bool:
    """Whether it is the cluster that `ray start` began on this machine, for which Ray finds a token by itself."""
    return cluster.address == "auto" and not os.environ.get("RAY_ADDRESS")


def _address(cluster: Cluster) -> str:
    """HOST:PORT. Raises BadSetting where "auto" finds none, or RAY_ADDRESS is no such address."""
    if cluster.address != "auto":
        return cluster.address
    if named := os.environ.get("RAY_ADDRESS"):
        try:
            return ray_address(named)
        except ValueError as error:
            raise BadSetting(f"RAY_ADDRESS is {named!r}: {error}") from None
    with suppress(OSError):
        return (Path(os.environ.get("RAY_TMPDIR", "/tmp")) / CURRENT).read_text("utf-8").strip()
    raise BadSetting(
        "cluster.address is 'auto', and no Ray cluster runs on this machine: name one with --address HOST:PORT, or "
        f"start one with `ray start --head` ({PAGE})"
    )


def _knock(address: str) -> None:
    """Returns when a server of Ray's kind answers there. Raises BadSetting."""
    import grpc

    host, _, port = address.rpartition(":")
    try:
        if os.environ.get("RAY_USE_TLS", "0") != "0":  # its certificates are Ray's matter
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
            return
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(CONNECT_SECONDS)
    except (OSError, ValueError, grpc.FutureTimeoutError) as error:
        raise BadSetting(
            f"no Ray cluster answers at {address} (for {CONNECT_SECONDS:g} s): does its head run (`ray status` there), "
            "and is this the port that it was started with (6379 where none was chosen)?"
        ) from error


class Takes(Enum):
    """What a process of the cluster takes."""

    GPU = 1
    CORES = 2
    NOTHING = 3  # it starts ranks, which take all that they need at once


@dataclass(frozen=True)
class Slots:
    """Tasks that fit at once: with a GPU each, and without."""

    gpus: int = 0
    cpus: int = 0

    @property
    def total(self) -> int:
        return self.gpus + self.cpus

    def of(self, takes: Takes) -> int:
        return {Takes.GPU: self.gpus, Takes.CORES: self.cpus, Takes.NOTHING: 1}[takes]


def slots_of(nodes: Iterable[Mapping[str, Any]], study: Study) -> Slots:
    """What nodes, as ray.nodes() lists them, can hold. A task on a GPU wants a core, too, any other those it computes
    with."""
    gpus = cpus = 0
    for node in nodes:
        there = node["Resources"] if node["Alive"] else {}
        of_node = int(min(there.get("GPU", 0), there.get("CPU", 0)))
        gpus += of_node
        cpus += int(there.get("CPU", 0) - of_node) // study.cluster.threads
    return Slots(gpus, cpus)


def cluster_slots(study: Study) -> Slots:
    """What the cluster can hold now."""
    import ray

    return slots_of(ray.nodes(), study)


def slots_at(cluster: Cluster, study: Study) -> Slots:
    """Connects to the cluster and returns what it can hold now. Raises BadSetting for a study without threads."""
    if not study.cluster.threads:
        raise BadSetting(
            "the engine ray wants the number of threads of each training, since results follow from it: --set "
            "cluster.threads=N, at most the cores of the smallest node"
        )
    connect(cluster)
    return cluster_slots(study)


def checked_slots(cluster: Cluster, study: Study) -> Slots:
    """The same. Raises BadSetting where it can hold nothing."""
    slots = slots_at(cluster, study)
    if not slots.total:
        address = connect(cluster)
        raise BadSetting(
            f"the Ray cluster at {address} has no room: wanted a GPU, or {study.cluster.threads} CPUs on one node "
            f"(cluster.threads): join nodes to it with `ray start --address={address}`"
        )
    return slots


def actor_options(study: Study, takes: Takes, on_gpus: bool = False) -> dict[str, Any]:
    """Options of a process that computes: what it takes, and its environment. Ray neither starts it again nor repeats
    what it was asked: each try is a Dagster run of its own. `on_gpus`: of a run that had GPUs when it began."""
    variables = plain_environment()
    if takes is Takes.CORES:
        variables["CUDA_VISIBLE_DEVICES"] = ""
    if takes is Takes.NOTHING and on_gpus:
        variables[RANKS_ON_GPUS] = "1"
    return {
        "num_gpus": 1 if takes is Takes.GPU else 0,
        "num_cpus": {Takes.GPU: 1, Takes.CORES: study.cluster.threads, Takes.NOTHING: 0}[takes],
        "max_restarts": 0,
        "max_task_retries": 0,
        "runtime_env": {"env_vars": variables},
    }


def plain_environment() -> dict[str, str]:
    """Variables that processes on the nodes get from this one. Ray's dashboard shows them, so they are no secrets."""
    return _passed()[0]


def secret_environment() -> dict[str, str]:
    """Variables with passwords and keys: to be handed to a process in a call, which Ray's dashboard does not show.
    What a node has itself stays there."""
    return _passed()[1]


def _passed() -> tuple[dict[str, str], dict[str, str]]:
    """(plain, secret) variables that are passed on."""
    named = _named_by_dagster()
    plain, secret = dict[str, str](), dict[str, str]()
    for name, value in os.environ.items():
        if name in named or name.startswith(KEYS):
            secret[name] = value
        elif name in PLAIN or (name.startswith("HARDMOE_") and name != threads.SHARE):
            (secret if is_secret(name, value) else plain)[name] = value
    return plain, secret


def _named_by_dagster() -> set[str]:
    """Variables that dagster.yaml names by `env:`, such as the one with PostgreSQL's password."""
    import yaml

    with suppress(OSError, ValueError, KeyError, yaml.YAMLError):  # `opened` reports what is wrong with it
        text = (Path(os.environ["DAGSTER_HOME"]) / DAGSTER_SETTINGS).read_text("utf-8")
        return set(_values_of_env(yaml.safe_load(text)))
    return set()


def _values_of_env(settings: Any) -> Iterator[str]:
    if isinstance(settings, dict):
        for key, value in settings.items():
            if key == "env" and isinstance(value, str):
                yield value
            else:
                yield from _values_of_env(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from _values_of_env(value)


@contextmanager
def shared_locks(root: Path, instance: dg.DagsterInstance) -> Iterator[list[Path]]:
    """Holds locks that every node is to see as held: in the study's folder, and in Dagster's where that is another
    and its storage SQLite."""
    name, home = f"nodes-{uuid.uuid4().hex}", Path(os.environ["DAGSTER_HOME"])
    locks = [Layout(root).lease(name)]
    if isinstance(instance.run_storage, SqliteRunStorage) and root not in (home, *home.parents):
        locks.append(home / f".{name}.lock")
    with ExitStack() as until:
        yield [until.enter_context(shown_lock(lock)) for lock in locks]


@contextmanager
def shown_lock(lock: Path) -> Iterator[Path]:
    """Holds a lock, which a node sees as held where it shares the folder; then the file is gone."""
    try:
        with exclusive(lock):
            yield lock
    finally:
        lock.unlink(missing_ok=True)


def check_nodes(study: Study, locks: list[Path], warn: Callable[[str], None]) -> None:
    """Starts a process on each node that can hold a task, and compares what it finds there.

    Raises BadSetting for a node that has other versions, or another folder; warns of other processors.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    ours = about([])
    nodes = {n["NodeID"]: n for n in ray.nodes() if n["Alive"] and {"CPU", "GPU"} & n["Resources"].keys()}
    options = {"num_cpus": 0, "max_retries": 0, "runtime_env": {"env_vars": plain_environment()}}
    look = ray.remote(about)
    asked = {look.options(**options, scheduling_strategy=On(node, soft=False)).remote(locks): node for node in nodes}
    answered, _ = ray.wait([*asked], num_returns=len(asked), timeout=NODE_SECONDS)
    found: dict[str, About] = {}
    for answer, node in asked.items():
        host = nodes[node]["NodeManagerHostname"]
        if answer not in answered:
            raise BadSetting(
                f"node {host} of the Ray cluster started no process in {NODE_SECONDS:g} s: see `ray status`"
            )
        try:
            found[node] = ray.get(answer)
        except ray.exceptions.RayError as error:
            why = str(error).strip().splitlines()[-1][:300]
            raise BadSetting(
                f"node {host} of the Ray cluster cannot run hardmoe: {why}; install the same there"
            ) from error
        if problem := found[node].problem(ours, locks):
            raise BadSetting(f"node {host} of the Ray cluster {problem}")
    kinds = {" ".join([found[node].processor, *_accelerators(there)]) for node, there in nodes.items()}
    if len(kinds) > 1:
        differ = f"nodes of the Ray cluster have unlike processors ({'; '.join(sorted(kinds))})"
        if study.trunk.deterministic or study.expert_training.deterministic:
            raise BadSetting(
                f"{differ}, whose results differ in the last bits, and the study asks for the same ones "
                "(deterministic = true): use a cluster of one kind, or set it to false"
            )
        warn(f"{differ}: results may differ in the last bits from run to run")


def _accelerators(node: Mapping[str, Any]) -> list[str]:
    prefix = "accelerator_type:"
    return [name.removeprefix(prefix) for name in node["Resources"] if name.startswith(prefix)]
