"""A Ray cluster on this machine: a head that runs nothing and nodes with a processor each, on loopback.

Ray binds its servers to the address of the machine, whatever it is told, unless it takes the machine for one where
clusters are not supported; then it binds 127.0.0.1, and all works.
"""

import os
import signal
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

VARIABLES = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_period_ms": "1000",  # a node that is lost is noticed in some five seconds
    "RAY_health_check_failure_threshold": "5",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # and so is the head
}
os.environ.update(VARIABLES)
pytest.importorskip("ray", reason="pip install 'hardmoe[ray]'")
from ray.cluster_utils import Cluster  # noqa: E402 the variables come first


@contextmanager
def cluster(nodes=2):
    """A head and so many nodes; `add_node` and `remove_node` of what it yields add others, and end them."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            made.add_node(num_cpus=1)
        yield made
    finally:
        made.shutdown()


def node_of(made, pid):
    """The node that a process runs on."""
    (node,) = [node for node in made.worker_nodes if parent_of(pid) in pids(node)]
    return node


def pids(node):
    return [info.process.pid for infos in node.all_processes.values() for info in infos]


def parent_of(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def lose(node):
    """The node is gone, with all its processes at once."""
    lost = set(pids(node))
    for pid in sorted(int(path.name) for path in Path("/proc").glob("[0-9]*")):
        if parent_of(pid) in lost:
            lost.add(pid)
    for stop in (signal.SIGSTOP, signal.SIGKILL):  # first, so that none notes that another has gone
        for pid in lost:
            with suppress(ProcessLookupError):
                os.kill(pid, stop)
