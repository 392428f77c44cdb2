"""Ranks and helpers of a stage on the nodes of a Ray cluster: moe_core.engine.nodes for a cluster.

Each is kept by a small process of Ray's on its node, which starts and watches it as on one machine, and is asked how it
is. It ends with its keeper, and a keeper with the process that computes the stage.
"""

import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_core.engine.nodes import Job, Member, Nodes, Report, ThisMachine, most_places, start_rank
from moe_core.errors import BadSetting, RankLost
from moe_core.processes import CHECK_SECONDS, Child, stall_seconds, start_child
from moe_core.settings import Study
from pipelines.run.pools.ray import why_lost
from pipelines.run.pools.ray_cluster import RANKS_ON_GPUS, Takes, actor_options, shown_lock, slots_at
from pipelines.run.pools.ray_node import About, about

LOOK_SECONDS = 0.5  # between two questions how a process is
START_SECONDS = 120.0  # for the keepers of a gang that has its room
REPLACED_SECONDS = 60.0  # for a node that was lost to come back, or another
END_SECONDS = 10.0  # for the processes of a gang to be gone; then their keepers are killed
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the process of a job
SIOCGIFADDR = 0x8915  # of netdevice(7)


def stage_nodes(study: Study) -> Nodes:
    """Where a step starts processes of its own: in a process of a Ray cluster on its nodes, else on this machine."""
    ray = sys.modules.get("ray")
    return RayNodes(study) if JOB in os.environ or (ray and ray.is_initialized()) else ThisMachine()


@dataclass(frozen=True)
class Look:
    """How a process is: what it printed since the last look, and how it ended, as Child has it."""

    lines: list[str]
    code: int | None
    failure: str
    stalled: bool


class Keeper:
    """A process of Ray's on a node, which starts one of ours and watches it."""

    def __init__(self, threads_of_ray: bool) -> None:
        """`threads_of_ray`: OMP_NUM_THREADS is Ray's, not the user's."""
        if threads_of_ray:
            os.environ.pop("OMP_NUM_THREADS", None)
        self.child: Child | None = None
        self.listener: socket.socket | None = None

    def node(self) -> str:
        """Ray's name of the node."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def listen(self, address: str) -> int:
        """Opens the port at which the ranks of a gang meet; for rank 0."""
        self.listener = socket.create_server((address, 0))
        return int(self.listener.getsockname()[1])

    def start_rank(self, module: str, job: dict[str, Any], folder: Path, address: str, ours: About, lock: Path) -> None:
        """Starts a rank of a gang. `address` is the node's, which tells the network that the ranks use."""
        _check(ours, lock)
        inherited = [self.listener.fileno()] if self.listener else []
        if inherited:
            job["meeting"]["socket"] = inherited[0]
        self.child = start_rank(module, job, folder, _interface(address), inherited)
        if self.listener:
            self.listener.close()

    def start_helper(self, module: str, folder: Path, ours: About, lock: Path) -> None:
        _check(ours, lock)
        self.child = start_child(module, str(folder), stdin=subprocess.DEVNULL)

    def look(self) -> Look:
        assert self.child
        code = self.child.exit_code()  # before its lines, the last of which it may print meanwhile
        lines = self.child.lines() if self.child.process.stdout else []
        return Look(lines, code, self.child.failure(), self.child.stalled)

    def close(self) -> None:
        if self.child:
            self.child.close()
            self.child = None


def _check(ours: About, lock: Path) -> None:
    """Raises BadSetting where this node has other versions, or does not see the folder of the stage."""
    found = about([lock])
    if problem := found.problem(ours, [lock]):
        raise BadSetting(f"node {found.host} of the Ray cluster {problem}")


def _interface(address: str) -> str:
    """The network interface with this address; "" where none has it, and gloo is to choose."""
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()))
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""


class RayNodes:
    """The nodes of the cluster: a rank or a helper has a GPU where there are any, else `cluster.threads` cores.

    A process that was given several GPUs, such as a job of the launcher, uses those.
    """

    def __init__(self, study: Study) -> None:
        self.study = study

    @contextmanager
    def gang(self, module: str, ranks: int, job: Job, folder: Path, report: Report) -> Iterator[Sequence[Member]]:
        with ExitStack() as until:
            if (own := _own_gpus()) >= ranks:
                yield until.enter_context(ThisMachine().gang(module, ranks, job, folder, report))
                return
            takes = self._enough(ranks, own)
            lock = until.enter_context(_held_in(folder))
            group = until.enter_context(self._room(ranks, takes, report))
            keepers = [self._keeper(takes, group, number) for number in range(ranks)]
            until.callback(_end, keepers)
            device = "cuda:0" if takes is Takes.GPU else "cpu"  # Ray shows each its own GPU alone
            yield _start(module, keepers, {**job, "device": device}, folder, lock)

    def places(self, study: Study) -> list[str]:
        if _own_gpus() > 1:
            return ThisMachine().places(study)
        return [""] * min(self._places()[1], most_places(study))

    def helper(self, place: str, module: str, folder: Path) -> Member:
        """It waits where there is no room for it yet."""
        if place:
            return ThisMachine().helper(place, module, folder)
        until = ExitStack()
        lock = until.enter_context(_held_in(folder))
        keeper = self._keeper(self._places()[0])
        return RayMember(keeper, keeper.start_helper.remote(module, folder, about([]), lock), until=until)

    def _enough(self, ranks: int, own: int) -> Takes:
        """What each rank is to take. Raises BadSetting where the cluster has too little and gets no nodes soon."""
        deadline = time.monotonic() + REPLACED_SECONDS
        while True:
            takes, places = self._places()
            if places - own >= ranks:
                return takes
            if time.monotonic() >= deadline:
                there = f"{self._name(places, takes)}{f', {own} of them taken by this run' if own else ''}"
                raise BadSetting(f"trunk_setup.ranks = {ranks}, but the Ray cluster has {there}")
            time.sleep(1)

    def _places(self) -> tuple[Takes, int]:
        """(what a rank or a helper takes, how often the cluster has that)"""
        slots = slots_at(self.study.cluster, self.study)
        on_gpus = slots.gpus or RANKS_ON_GPUS in os.environ
        return (Takes.GPU, slots.gpus) if on_gpus else (Takes.CORES, slots.cpus)

    def _keeper(self, takes: Takes, group: Any = None, number: int = 0) -> Any:
        """A keeper that is to be placed, in its part of a placement group where there is one."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as In

        options = actor_options(self.study, takes)
        if group:
            options["scheduling_strategy"] = In(group, placement_group_bundle_index=number)
        actor: Any = ray.remote(Keeper)
        return actor.options(**options).remote(threads_of_ray="OMP_NUM_THREADS" not in os.environ)

    def _name(self, count: int, takes: Takes) -> str:
        return f"{count} GPUs" if takes is Takes.GPU else f"{count} times {self.study.cluster.threads} CPUs"

    @contextmanager
    def _room(self, ranks: int, takes: Takes, report: Report) -> Iterator[Any]:
        """Room for all ranks, on as few nodes as can be; waits until there is."""
        from ray.util.placement_group import placement_group, remove_placement_group

        bundle = {"GPU": 1, "CPU": 1} if takes is Takes.GPU else {"CPU": self.study.cluster.threads}
        group = placement_group([bundle] * ranks, strategy="PACK")
        try:
            if not group.wait(timeout_seconds=1):
                report({"waits": f"{self._name(ranks, takes)} of the Ray cluster"})
                while not group.wait(timeout_seconds=1):
                    pass
                report({})
            yield group
        finally:
            remove_placement_group(group)


def _own_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _start(module: str, keepers: Sequence[Any], job: Job, folder: Path, lock: Path) -> "list[RayMember]":
    """Starts a rank by each keeper, neighbors on one node. Raises RankLost, or what is wrong with a node."""
    import ray

    nodes, ours = {node["NodeID"]: node for node in ray.nodes()}, about([])
    members: list[RayMember] = []
    try:
        found = ray.get([keeper.node.remote() for keeper in keepers], timeout=START_SECONDS)
        ranks = [(nodes[node], keepers[number]) for node, number in sorted(zip(found, range(len(found)), strict=True))]
        meeting = {"host": ranks[0][0]["NodeManagerAddress"]}
        meeting["port"] = ray.get(ranks[0][1].listen.remote(meeting["host"]), timeout=START_SECONDS)
        started = []
        for rank, (node, keeper) in enumerate(ranks):
            own = {**job, "rank": rank, "meeting": meeting}
            started.append(keeper.start_rank.remote(module, own, folder, node["NodeManagerAddress"], ours, lock))
            members.append(RayMember(keeper, started[-1], node["NodeManagerHostname"]))
        ray.get(started, timeout=START_SECONDS)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise RankLost(f"a rank could not be started: {why_lost(error)}") from error
    return members


class RayMember:
    """A rank or helper on a node, as the stage sees it."""

    def __init__(self, keeper: Any, started: Any, host: str = "", until: ExitStack | None = None) -> None:
        """`started` answers when it runs; `host` where that is known."""
        self.stalled = False
        self._keeper, self._asked, self._where, self._until = keeper, started, f" on node {host}" if host else "", until
        self._is_placed = bool(host)
        self._lines: list[str] = []
        self._code: int | None = None
        self._failure = ""
        self._limit, self._silence = stall_seconds(), 0.0
        self._checked = self._asked_at = time.monotonic()

    def lines(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines

    def exit_code(self) -> int | None:
        if self._code is None:
            self._look()
        return self._code

    def failure(self) -> str:
        self.exit_code()
        return self._failure

    def close(self) -> None:
        import ray

        if self._is_placed:
            _end([self._keeper])
        ray.kill(self._keeper)
        if self._until:
            self._until.close()

    def _look(self) -> None:
        """Notes an answer, asks again, or finds that none comes."""
        import ray

        now = time.monotonic()
        self._silence += min(now - self._checked, CHECK_SECONDS)  # this process may have been stopped itself
        self._checked = now
        if self._asked is None:
            if now - self._asked_at >= LOOK_SECONDS:
                self._asked, self._asked_at = self._keeper.look.remote(), now
        elif ray.wait([self._asked], timeout=0)[0]:
            self._note()
        elif self._is_placed and self._silence >= self._limit:
            self.stalled = True
            self._lose(f"no progress for {self._limit:g} s (stopped or hung, or its node is cut off); killed")
            ray.kill(self._keeper)

    def _note(self) -> None:
        import ray

        answer, self._asked, self._silence, self._is_placed = self._asked, None, 0.0, True
        try:
            look = ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            self._lose(f"lost: {why_lost(error)}")
        else:
            if look:
                self._lines += look.lines
                self._code, self.stalled = look.code, look.stalled
                self._failure = look.failure and look.failure + self._where

    def _lose(self, why: str) -> None:
        self._code, self._failure = -signal.SIGKILL, why + self._where


def _held_in(folder: Path) -> AbstractContextManager[Path]:
    """A lock in the folder, held, for the nodes."""
    return shown_lock(folder / f".nodes-{uuid.uuid4().hex}")


def _end(keepers: Sequence[Any]) -> None:
    """Returns when their processes are gone, or their nodes do not answer."""
    import ray

    closed = [keeper.close.remote() for keeper in keepers]
    ray.wait(closed, num_returns=len(closed), timeout=END_SECONDS)
    for keeper in keepers:
        ray.kill(keeper)
