"""What Ray adds to a run: from the task that is handed to the pool to its answer, less the run in the process itself.

A cluster of one node is started on this machine, on loopback, and one warm process runs the task `vocabulary` of a tiny
study, which exists, over and over. Both times are taken in the same run: the one by the command, the other within.

Example: python benchmarks/ray_share.py --runs 40
"""

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import plain
from dagster._core.utils import make_new_run_id

from moe_core.recipes import demo
from moe_core.settings import Cluster, Source, Study
from moe_core.store.layout import Layout
from moe_core.study_file import dump_study, load_study
from pipelines.instance.home import prepare_home
from pipelines.instance.opening import opened
from pipelines.run.pools import ray as pool_of_ray
from pipelines.run.pools.ray_node import Worker
from pipelines.run.task import Task, TaskResult

TARGET = 0.05  # seconds
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
WARM = 3  # runs that are not counted


class Timed(Worker):
    """Answers with the seconds of the run in place of the artifact's version."""

    def run(self, task: Task, run_id: str, log: Path, study: Study) -> TaskResult:
        began = time.perf_counter()
        result = Worker.run(self, task, run_id, log, study)
        return replace(result, version=str(time.perf_counter() - began))


def measured(study: Path, address: str, runs: int) -> list[tuple[float, float]]:
    """(seconds of a run for the command, seconds in the process) of each."""
    planned, root, found = load_study(study), study.parent, []
    with opened() as instance:
        pool = pool_of_ray.RayPool(Cluster(engine="ray", address=address), planned, root, instance)
        try:
            for _ in range(runs + WARM):
                began = time.perf_counter()
                answer: Future[TaskResult] = pool.submit(
                    Task("vocabulary", None), make_new_run_id(), Layout(root).log("vocabulary", None), planned
                )
                result = answer.result()
                took = time.perf_counter() - began
                if result.error:
                    raise RuntimeError(result.error)
                found.append((took, float(result.version)))
        finally:
            pool.close()
    return found[WARM:]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=40)
    args = options.parse_args()
    os.environ.update(LOOPBACK)
    from ray.cluster_utils import Cluster as LocalCluster

    replaced: Any = pool_of_ray
    replaced.Worker = Timed
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "study.toml"
        tiny = demo().model_copy(
            update={"source": Source(format="synthetic", posts=300, shards=1), "cluster": Cluster(threads=1)}
        )
        study.write_text(dump_study(tiny))
        plain.make(study, "posts", "splits", "vocabulary")
        os.environ["HARDMOE_STUDY"] = str(study)
        prepare_home(Path(folder), 1)
        cluster = LocalCluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            cluster.add_node(num_cpus=1)
            times = measured(study, cluster.address, args.runs)
        finally:
            cluster.shutdown()
    share = [took - inside for took, inside in times]
    runs = statistics.median(inside for _, inside in times)
    print(
        f"Ray's own share of a run: median {statistics.median(share) * 1000:.1f} ms, largest of {len(share)} "
        f"{max(share) * 1000:.1f} ms, beside a run of {runs * 1000:.0f} ms (target {TARGET * 1000:.0f} ms)"
    )


if __name__ == "__main__":
    main()
