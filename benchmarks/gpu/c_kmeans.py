"""Part c: spherical k-means in device memory: the project's fit, its parts, flash-kmeans, FAISS, and the floors.

An iteration must read the features once (N x P x 4 bytes) and do 2 N K P operations to find the nearest centroids. The
floor is the larger of two times: these bytes at the bandwidth of a sum, these operations at the rate of a large
product; both are measured here. FAISS comes last: its build for CUDA 12 beside a torch for CUDA 13 may end the process.
Run in the repository's root: python benchmarks/gpu/c_kmeans.py SECONDS [POSTS]

Letters: N posts, P dimensions, K clusters.
"""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from unittest import mock

import numpy as np
import torch
from common import CUDA, DEVICE, NEEDS_CUDA, Results, parser, sync
from torch import Tensor

from moe_core.clustering.device_kmeans import best_fit, devices_for
from moe_core.clustering.kmeans import assign as assign_rows
from moe_core.clustering.kmeans import fit_kmeans

P, KS = 256, ((1024, 64, 256) if CUDA else (8, 4))  # the K of docs/gpu.md first
CHUNK = 1 << 18
FIT_POSTS = 2_000_000 if CUDA else 1_000  # the default of partition.max_fit_posts
COMPARED_POSTS = 100_000 if CUDA else 500  # by the CPU, too


def seconds_of(work: Callable[[], object], repeats: int = 3) -> float:
    """Seconds of one call, after one that is not timed."""
    work()
    sync()
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    sync()
    return (time.perf_counter() - began) / repeats


def features(posts: int) -> Tensor:
    """(N, P) float32: unit vectors around 2,000 centers."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    center_CP = torch.randn(2000, P, generator=generator, device=DEVICE)
    x_NP = torch.empty(posts, P, device=DEVICE)
    for first in range(0, posts, CHUNK):
        part = x_NP[first : first + CHUNK]
        part.normal_(generator=generator).mul_(0.8)
        part += center_CP[torch.randint(0, 2000, (len(part),), generator=generator, device=DEVICE)]
        part /= part.norm(dim=1, keepdim=True)
    return x_NP


def assign(x_NP: Tensor, centroids_KP: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each post, (N,) int64, and the sum of the inner products with it."""
    nearest_N = torch.empty(len(x_NP), dtype=torch.int64, device=x_NP.device)
    objective = torch.zeros((), dtype=torch.float64, device=x_NP.device)
    for first in range(0, len(x_NP), CHUNK):
        best, nearest_N[first : first + CHUNK] = (x_NP[first : first + CHUNK] @ centroids_KP.T).max(1)
        objective += best.sum(dtype=torch.float64)
    return nearest_N, objective


def sums_by_index_add(x_NP: Tensor, nearest_N: Tensor, k: int) -> Tensor:
    """(K, P): the sum of each cluster's posts."""
    return torch.zeros(k, P, device=x_NP.device).index_add_(0, nearest_N, x_NP)


def sums_by_product(x_NP: Tensor, nearest_N: Tensor, k: int) -> Tensor:
    """The same as products with the one-hot assignment: no contention where many posts share few centroids."""
    total_KP, place_K1 = torch.zeros(k, P, device=x_NP.device), torch.arange(k, device=x_NP.device)[:, None]
    for first in range(0, len(x_NP), CHUNK):
        total_KP.addmm_((place_K1 == nearest_N[first : first + CHUNK]).float(), x_NP[first : first + CHUNK])
    return total_KP


def sums_by_sort(x_NP: Tensor, nearest_N: Tensor, k: int) -> Tensor:
    """The same over posts sorted by cluster."""
    lengths_K = torch.bincount(nearest_N, minlength=k)
    return torch.segment_reduce(x_NP[nearest_N.argsort()], "sum", lengths=lengths_K, axis=0)


SUMS = {"index_add": sums_by_index_add, "product": sums_by_product, "sort": sums_by_sort}


def ceilings(results: Results) -> dict[str, float]:
    """Tflop/s of a large product by precision, TB/s of a copy and of a sum."""
    if not CUDA:
        results.skip("ceilings", NEEDS_CUDA)
        return {}
    measured = {}
    a = torch.randn(8192, 8192, device=DEVICE)
    for name, x, precision in (
        ("float32", a, "highest"),
        ("tf32", a, "high"),
        ("bfloat16", a.bfloat16(), "highest"),
    ):
        torch.set_float32_matmul_precision(precision)
        measured[name] = 2 * 8192**3 / seconds_of(partial(torch.matmul, x, x), 5) / 1e12
    y = torch.empty(1 << 30, device=DEVICE)
    z = torch.empty_like(y)
    measured["copy_tb_per_s"] = 2 * y.nbytes / seconds_of(lambda: z.copy_(y), 5) / 1e12
    measured["read_tb_per_s"] = y.nbytes / seconds_of(lambda: y.sum(), 5) / 1e12
    results.record("ceilings", **{name: round(value, 2) for name, value in measured.items()})
    return measured


def floor(results: Results, x_NP: Tensor, k: int, ceiling: dict[str, float]) -> None:
    """The least that an iteration can take, in ms."""
    products = {
        name: round(1000 * 2 * len(x_NP) * k * P / 1e12 / ceiling[name], 2)
        for name in ("float32", "tf32", "bfloat16")
        if name in ceiling
    }
    if not products:
        results.skip(f"K={k}: floor in ms", NEEDS_CUDA)
        return
    results.record(
        f"K={k}: floor in ms", read_once=round(1000 * x_NP.nbytes / 1e12 / ceiling["read_tb_per_s"], 2), **products
    )


def assignments(results: Results, x_NP: Tensor, start_KP: Tensor) -> Tensor | None:
    """Times of the assignment in float32 and TF32. Returns the first that succeeds, (N,) int64."""
    reference_N: Tensor | None = None
    k = len(start_KP)

    def run(name: str) -> None:
        nonlocal reference_N
        nearest_N, objective = assign(x_NP, start_KP)
        reference_N = nearest_N if reference_N is None else reference_N
        results.record(
            f"K={k}: assign, {name}",
            ms=round(1000 * seconds_of(lambda: assign(x_NP, start_KP)), 2),
            same=round(float((nearest_N == reference_N).float().mean()), 5),
            objective=round(float(objective), 1),
        )

    for name, precision in (("float32", "highest"), ("tf32", "high")):
        torch.set_float32_matmul_precision(precision)
        results.attempt(f"K={k}: assign, {name}", partial(run, name))
    torch.set_float32_matmul_precision("highest")
    return reference_N


def all_sums(results: Results, x_NP: Tensor, nearest_N: Tensor, k: int) -> None:
    """Times of three ways to sum the posts of each cluster."""
    exact_KP: Tensor | None = None

    def run(name: str) -> None:
        nonlocal exact_KP
        sums_KP = SUMS[name](x_NP, nearest_N, k).double()
        exact_KP = sums_KP if exact_KP is None else exact_KP
        results.record(
            f"K={k}: sums by {name}",
            ms=round(1000 * seconds_of(lambda: SUMS[name](x_NP, nearest_N, k)), 2),
            differs=float((sums_KP - exact_KP).norm() / exact_KP.norm()),
        )

    for name in SUMS:
        results.attempt(f"K={k}: sums by {name}", partial(run, name))


def flash(results: Results, x_NP: Tensor, start_KP: Tensor) -> None:
    """flash-kmeans: an iteration is a fifth of what six take more than one."""
    k = len(start_KP)
    if not CUDA or not importlib.util.find_spec("flash_kmeans"):
        results.skip(f"K={k}: flash-kmeans", "flash_kmeans is not installed" if CUDA else NEEDS_CUDA)
        return
    from flash_kmeans import batch_kmeans_Euclid

    for dtype in (torch.float32, torch.float16):
        x_1NP, start_1KP = x_NP[None].to(dtype), start_KP[None].to(dtype)

        def run(iterations: int, x_1NP: Tensor = x_1NP, start_1KP: Tensor = start_1KP) -> None:
            batch_kmeans_Euclid(
                x_1NP, n_clusters=len(start_1KP[0]), max_iters=iterations, tol=0.0, init_centroids=start_1KP
            )

        first, six = seconds_of(partial(run, 1), 1), seconds_of(partial(run, 6), 1)
        results.record(
            f"K={k}: flash-kmeans, {dtype}",
            ms_per_iteration=round(1000 * (six - first) / 5, 2),
            ms_of_six=round(1000 * six, 1),
        )


def faiss_search(results: Results, x_NP: Tensor, k: int) -> None:
    """FAISS's search alone, on tensors on the device: what faiss.contrib.torch.clustering builds on."""
    import faiss

    if not CUDA or not hasattr(faiss, "StandardGpuResources"):
        results.skip(f"K={k}: faiss.knn_gpu", "faiss is built without CUDA" if CUDA else NEEDS_CUDA)
        return
    import faiss.contrib.torch_utils

    start_KP = x_NP[:k].clone()
    reference_N, _ = assign(x_NP, start_KP)
    resources = faiss.StandardGpuResources()
    resources.setDefaultNullStreamAllDevices()

    def search() -> Tensor:
        return faiss.knn_gpu(resources, x_NP, start_KP, 1, metric=faiss.METRIC_INNER_PRODUCT)[1]

    nearest_N = search().ravel()
    results.record(
        f"K={k}: faiss.knn_gpu",
        ms=round(1000 * seconds_of(search, 2), 2),
        same=round(float((nearest_N == reference_N).float().mean()), 5),
    )


def project_iteration(results: Results, x_NP: Tensor, posts: np.ndarray, k: int, ceiling: dict[str, float]) -> None:
    """An iteration of the project's fit of all posts: what five take more than one, over four."""
    start_KP = posts[:k]
    devices = devices_for(posts.nbytes) if CUDA else ["cpu"]
    seconds, objective = {}, 0.0
    for iterations in (1, 5):
        began = time.perf_counter()
        _, objective = best_fit(posts, [start_KP], iterations, devices)
        seconds[iterations] = time.perf_counter() - began
    iteration = (seconds[5] - seconds[1]) / 4
    read_once = x_NP.nbytes / 1e12 / ceiling["read_tb_per_s"] if ceiling else seconds_of(lambda: x_NP.sum())
    results.record(
        f"K={k}: an iteration of the project's fit",
        posts=len(x_NP),
        ms=round(1000 * iteration, 2),
        ms_besides=round(1000 * (seconds[1] - iteration)),
        times_reading_once=round(iteration / read_once, 2),
        objective=round(objective, 1),
    )


def project_fit(results: Results, x_NP: Tensor, k: int) -> None:
    """The project's whole fit, from host memory to host memory, of as many posts as it fits by default."""
    x = x_NP[:FIT_POSTS].cpu().numpy()
    began = time.perf_counter()
    _, objective = fit_kmeans(x, k, 10, 1, 0, x[:k])
    results.record(
        f"K={k}: the project's fit of {len(x):,} posts, 10 iterations",
        seconds=round(time.perf_counter() - began, 3),
        objective=round(objective, 1),
    )


def against_the_cpu(results: Results, x_NP: Tensor, k: int, by_faiss: bool) -> None:
    """The objective after ten iterations on the device and on the CPU: there by torch, or by FAISS as a study fits."""
    x = x_NP[:COMPARED_POSTS].cpu().numpy()
    start_KP = x[:k]
    _, objective = best_fit(x, [start_KP], 10, [DEVICE])
    if by_faiss:
        with mock.patch.object(torch.cuda, "is_available", return_value=False):
            _, on_cpu = fit_kmeans(x, k, 10, 1, 0, start_KP)
    else:
        _, on_cpu = best_fit(x, [start_KP], 10, ["cpu"])
    results.record(
        f"K={k}: against {'FAISS' if by_faiss else 'torch'} on the CPU",
        posts=len(x),
        objective=round(objective, 3),
        on_cpu=round(on_cpu, 3),
        differs=abs(objective - on_cpu) / on_cpu,
    )


def project_assign(results: Results, x_NP: Tensor, k: int) -> None:
    """The project's assignment, from host memory to host memory, on the device and on the CPU."""
    x = x_NP[:500_000].cpu().numpy()
    seconds = {}
    for place in dict.fromkeys((DEVICE, "cpu")):
        began = time.perf_counter()
        assign_rows(x, x[:k], device=place)
        seconds[f"seconds_{place}"] = round(time.perf_counter() - began, 3)
    results.record(f"K={k}: the project's assignment", posts=len(x), **seconds)


@cache
def why_no_faiss() -> str:
    """ "" where FAISS loads and asks for GPUs, else why not: tried in a process of its own, which it may end."""
    code = "import faiss; faiss.METRIC_INNER_PRODUCT; getattr(faiss, 'get_num_gpus', int)()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    if done.returncode == 0:
        return ""
    return f"faiss does not load: exit code {done.returncode}, {' '.join(done.stderr.split())[-200:]}"


def with_faiss(results: Results, what: str, work: Callable[[], None], least: float) -> None:
    """`work()` where FAISS loads."""

    def run() -> None:
        if why := why_no_faiss():
            results.skip(what, why)
        else:
            work()

    results.attempt(what, run, least)


def main() -> None:
    arguments = parser(__doc__, 100)
    arguments.add_argument("posts", nargs="?", type=int, default=10_000_000 if CUDA else 2_000)
    options = arguments.parse_args()
    results = Results("c", options.seconds)
    ceiling = results.attempt("ceilings", lambda: ceilings(results)) or {}
    torch.cuda.empty_cache()  # or a fit would not find the memory free
    x_NP = features(options.posts)
    posts = x_NP.cpu().numpy()
    for k in KS:
        results.attempt(f"K={k}: the project's fit", partial(project_iteration, results, x_NP, posts, k, ceiling), 10)
        if k == KS[0]:
            results.attempt("against torch", partial(against_the_cpu, results, x_NP, k, False), 10)
    for k in KS:
        start_KP = x_NP[:k].clone()
        floor(results, x_NP, k, ceiling)
        reference_N = assignments(results, x_NP, start_KP)
        if reference_N is not None:
            all_sums(results, x_NP, reference_N, k)
        results.attempt(f"K={k}: flash-kmeans", partial(flash, results, x_NP, start_KP), 15)
    if CUDA:  # on a CPU it is FAISS's
        results.attempt("the project's fit", partial(project_fit, results, x_NP, KS[1]), 5)
    else:
        with_faiss(results, "the project's fit", partial(project_fit, results, x_NP, KS[1]), 5)
    results.attempt("the project's assignment", partial(project_assign, results, x_NP, KS[0]), 5)
    for k in KS:
        with_faiss(results, f"K={k}: faiss.knn_gpu", partial(faiss_search, results, x_NP, k), 5)
    with_faiss(results, "against FAISS", partial(against_the_cpu, results, x_NP, KS[0], True), 10)


if __name__ == "__main__":
    main()
