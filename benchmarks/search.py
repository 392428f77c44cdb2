"""Search over drawn posts by the index against exact search: recall, the ratio of their times, memory.

Vectors are drawn as embeddings lie, not as noise: 64 experts with 40 clusters each, whose sizes follow Zipf's law; in
a cluster the spectrum decays, and negative values are cut off, as by the ReLU before the last layer. --spread is the
length of what is drawn in a cluster over that of its center: the larger, the less structure. Queries are other vectors
of the same kind ("posts"), and centers of clusters less the mean of all ("hashtags").

One core: the process is bound to it, and BLAS has one thread. Index and exact search, one product with all vectors in
memory, take turns, query by query; the ratio is that of the sums of their times. "from disk": no vector stays in
memory. Building and asking are processes of their own, each with its own peak of memory; 12 bytes a post of it are
files that are mapped, which the system may take back.

Example: python benchmarks/search.py --posts 1000000 --spread 0.5 1.0
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moe_core.search import build
from moe_core.search.files import VectorFiles
from moe_core.search.lists import Lists, best, unit

WIDTH, EXPERTS, CLUSTERS = 128, 64, 40
PART, TOP = 16_384, 20
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
DECAY = 0.5  # of the spectrum in a cluster: the n-th direction has n ** -DECAY


def centers() -> np.ndarray:
    """(EXPERTS * CLUSTERS, WIDTH) float32."""
    draw = np.random.default_rng(0)
    of_experts = draw.standard_normal((EXPERTS, 1, WIDTH))
    return (of_experts + 0.7 * draw.standard_normal((EXPERTS, CLUSTERS, WIDTH))).reshape(-1, WIDTH).astype(np.float32)


def drawn(count: int, spread: float, seed: int) -> np.ndarray:
    """(count, WIDTH) float32 of any length."""
    center_CD, draw = centers(), np.random.default_rng([1, seed])
    share_C = 1 / np.arange(1, len(center_CD) + 1)
    which = np.random.default_rng(2).permutation(len(center_CD))
    cluster_N = which[draw.choice(len(center_CD), count, p=share_C / share_C.sum())]
    scale_D = np.arange(1, WIDTH + 1) ** -DECAY
    scale_D *= spread * np.linalg.norm(center_CD, axis=1).mean() / np.linalg.norm(scale_D)
    turn_DD = np.linalg.qr(np.random.default_rng(3).standard_normal((WIDTH, WIDTH)))[0].astype(np.float32)
    noise_ND = (draw.standard_normal((count, WIDTH), np.float32) * scale_D.astype(np.float32)) @ turn_DD
    return np.maximum(center_CD[cluster_N] + noise_ND, 0)


def tag_queries(count: int) -> np.ndarray:
    center_CD = centers()
    rows = np.random.default_rng(4).choice(len(center_CD), count, replace=False)
    return unit(center_CD[rows] - center_CD.mean(0))


def build_index(folder: Path, posts: int, spread: float, memory: int) -> dict[str, Any]:
    def parts() -> Iterator[np.ndarray]:
        for first in range(0, posts, PART):
            yield drawn(min(PART, posts - first), spread, first)

    began = time.perf_counter()
    build.write_lists(folder, parts, posts, WIDTH, build.lists_for(posts, 1), 0, memory)
    seconds = time.perf_counter() - began
    queries = {"posts": unit(drawn(build.QUERIES, spread, posts + 1)), "hashtags": tag_queries(build.QUERIES)}
    exact = {kind: build.exact_answers(parts, query_QD, TOP) for kind, query_QD in queries.items()}
    lists = Lists(VectorFiles(folder.joinpath), memory, None)
    probes = build.chosen_probes(lists, queries, exact, 0.99)
    recall = {kind: build.recall_of(lists, queries[kind][1::2], exact[kind][1::2], probes) for kind in queries}
    return {"lists": len(lists.ends_K), "probes": probes, "seconds": seconds, "recall": recall}


def ask(folder: Path, spread: float, probes: int, memory: int, queries: int) -> dict[str, Any]:
    files = VectorFiles(folder.joinpath)
    lists = Lists(files, 1 << 40 if memory else 0, probes)
    contestants = {"index" if memory else "from disk": lambda query_D: lists.nearest(query_D, TOP)}
    if memory:
        vectors_ND, order_N = np.fromfile(files.vectors, np.float32).reshape(-1, WIDTH), np.load(files.order)
        contestants["exact"] = lambda query_D: best(order_N, vectors_ND @ query_D, TOP)
    times: dict[str, float] = dict.fromkeys(contestants, 0.0)
    asked = np.concatenate([unit(drawn(queries // 2, spread, 10**9)), tag_queries(queries // 2)])
    for query_D in asked:
        for name, find in contestants.items():
            began = time.perf_counter()
            find(query_D)
            times[name] += time.perf_counter() - began
    return {name: 1000 * seconds / len(asked) for name, seconds in times.items()}


def peak_mib() -> float:
    """Most memory that this process had, files that it mapped included."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measured(arguments: list[str]) -> dict[str, Any]:
    """What a process of this file prints."""
    command = [sys.executable, __file__, *arguments]
    environment = os.environ | dict.fromkeys(THREADS, "1")  # read when numpy is loaded
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def report(posts: int, spreads: list[float], memory_mib: int, queries: int) -> None:
    vectors = posts * WIDTH * 4 / 2**20
    print(f"{posts:,} posts of width {WIDTH} ({vectors:,.0f} MiB), top {TOP}, one core; build within {memory_mib} MiB")
    print(
        "| spread | lists, read | recall: posts, tags | exact | index | ratio | from disk | built | peak: build, disk |"
    )
    print(f"{'| --- ' * 9}|")
    for spread in spreads:
        with tempfile.TemporaryDirectory() as name:
            same = ["--folder", name, "--posts", str(posts), "--spread", str(spread), "--queries", str(queries)]
            built = measured([*same, "--phase", "build", "--memory", str(memory_mib)])
            probes = ["--phase", "ask", "--probes", str(built["probes"])]
            both, disk = (measured([*same, *probes, "--memory", memory]) for memory in ("1", "0"))
        recall = f"{built['recall']['posts']:.3f}, {built['recall']['hashtags']:.3f}"
        times = f"{both['exact']:.1f} ms | {both['index']:.2f} ms | 1/{both['exact'] / both['index']:.0f}"
        memory = f"{built['peak']:,.0f}, {disk['peak']:,.0f} MiB"
        print(
            f"| {spread} | {built['lists']:,}, {built['probes']} | {recall} | {times} | {disk['from disk']:.2f} ms | "
            f"{built['seconds']:.0f} s | {memory} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posts", type=int, default=1_000_000)
    parser.add_argument("--spread", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--memory", type=int, default=256, help="MiB, of the build")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--phase", choices=["build", "ask"], help="of a process that this one starts")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--probes", type=int)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if args.phase is None:
        report(args.posts, args.spread, args.memory, args.queries)
        return
    (spread,) = args.spread
    if args.phase == "build":
        result = build_index(args.folder, args.posts, spread, args.memory << 20)
    else:
        result = ask(args.folder, spread, args.probes, args.memory, args.queries)
    print(json.dumps(result | {"peak": peak_mib()}))


if __name__ == "__main__":
    main()
