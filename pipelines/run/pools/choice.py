"""Which pool carries out the tasks of a command, and how many it runs at once."""

import sys
from collections.abc import Callable

import dagster as dg

from moe_core import threads
from moe_core.devices import gpu_names
from moe_core.engine.context import Context
from moe_core.errors import BadSetting
from moe_core.settings import Cluster, Study
from pipelines.run.pools import Pool
from pipelines.run.pools.local import LocalPool
from pipelines.run.pools.ray import RayPool
from pipelines.run.pools.ray_cluster import checked_slots

LOCAL = Cluster()


def worker_count(workers: int | None, study: Study, cluster: Cluster = LOCAL) -> int:
    """Runs at once: `workers`, else as many as there are GPUs, or shares of the cores; on a cluster at most what that
    can hold.

    Raises BadSetting below 1, where HARDMOE_THREADS is another number than the study records, and for a cluster that
    does not answer or has no room.
    """
    if workers is not None and workers < 1:
        raise BadSetting(f"--workers {workers}: wanted at least 1")
    threads.record(study.cluster.threads)
    if cluster.engine == "ray":
        return min(workers or sys.maxsize, checked_slots(cluster, study).total)
    return workers or len(gpu_names()) or threads.workers_for(study.partition.experts)


def pool_on(
    cluster: Cluster,
    context: Context,
    instance: dg.DagsterInstance,
    workers: int | None,
    warn: Callable[[str], None],
) -> Pool:
    """The pool of a cluster, which gives a warning where its nodes differ; of this machine where the engine is local.

    Raises as `worker_count` does, and for a node that cannot run the study.
    """
    if cluster.engine == "ray":
        return RayPool(cluster, context.study, root=context.root, instance=instance, limit=workers, warn=warn)
    return LocalPool(worker_count(workers, context.study))
