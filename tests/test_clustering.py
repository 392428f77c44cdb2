import hashlib

import faiss
import numpy as np
import pytest
import torch

from moe_core.clustering import device_kmeans, product
from moe_core.clustering.balance import pack, repack
from moe_core.clustering.device_search import by_faiss, by_torch, search_for
from moe_core.clustering.gate import Gate, load_gate
from moe_core.clustering.kmeans import assign, fit_kmeans, random_rows, starts
from moe_core.clustering.matching import continued_by, overlap
from moe_core.clustering.random_partition import random_partition
from moe_core.clustering.whitening import Whitening, whiten


def blobs(count=30):
    """Three heaps around the axes of space."""
    noise = np.random.default_rng(0).normal(0, 0.05, (3 * count, 3))
    x = np.repeat(np.eye(3), count, axis=0) + noise
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def whitening_of(x, dimensions=3):
    return whiten([x[:10], x[10:]], dimensions)


@pytest.mark.parametrize(("posts", "clusters", "seed"), [(1, 1, 5), (3, 3, 0), (1000, 50, 7), (99_991, 300, 2**31 - 9)])
def test_restarts_begin_where_faiss_begins(posts, clusters, seed):
    order_N = np.empty(posts, np.int32)
    for restart, rows_K in enumerate(random_rows(posts, clusters, 2, seed)):
        faiss.rand_perm(faiss.swig_ptr(order_N), posts, seed + 1 + restart * 15_486_557)
        assert rows_K.tolist() == order_N[:clusters].tolist()


def test_three_heaps_are_three_clusters():
    centroids_KP, _ = fit_kmeans(blobs(), 3, iterations=10, restarts=3, seed=0)
    cluster = (blobs() @ centroids_KP.T).argmax(1)
    assert [len(set(cluster[n : n + 30])) for n in (0, 30, 60)] == [1, 1, 1]
    assert len(set(cluster)) == 3


def test_kmeans_repeats_exactly():
    (first_KP, _), (second_KP, _) = (fit_kmeans(blobs(), 3, 10, 3, seed=1) for _ in range(2))
    assert np.array_equal(first_KP, second_KP)


def test_kmeans_does_not_depend_on_the_threads():
    import faiss

    before = faiss.omp_get_max_threads()
    found = []
    try:
        for threads in (1, 2):
            faiss.omp_set_num_threads(threads)
            found.append(fit_kmeans(blobs(), 5, 10, 3, seed=1)[0])
    finally:
        faiss.omp_set_num_threads(before)
    assert np.array_equal(*found)


def test_every_post_is_fitted_on_where_faiss_would_sample():
    _, objective = fit_kmeans(blobs(300), 3, 10, 3, seed=0)
    assert 3 * 256 < objective <= 900, "almost one a post; by its default FAISS takes 256 a centroid"


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cpu:0"]], ids=len)
def test_kmeans_in_torch_gives_the_centroids_of_faiss(monkeypatch, devices):
    monkeypatch.setattr(device_kmeans, "PART_BYTES", 1000 * 16 * 4)  # of 3000 posts
    monkeypatch.setattr(device_kmeans, "COMPARED_BYTES", 300 * 12 * 4)
    x = unit(np.random.default_rng(0).normal(size=(3000, 16)))
    for restarts in (1, 3):
        found_KP, wanted = fit_kmeans(x, 12, 10, restarts, seed=7)
        starts = [x[rows] for rows in random_rows(len(x), 12, restarts, seed=7)]
        centroids, objective = device_kmeans.best_fit(x, starts, 10, devices)
        assert np.abs(centroids - found_KP).max() < 1e-5
        assert objective == pytest.approx(wanted, rel=1e-6)


def test_an_empty_cluster_takes_half_of_another_as_in_faiss():
    x = unit(np.abs(np.random.default_rng(0).normal(size=(500, 8))))
    start = np.concatenate([x[:10], -x[10:12]])  # two that are nearest to no post
    found_KP, _ = fit_kmeans(x, 12, 1, 1, seed=0, start_KP=start)
    centroids, _ = device_kmeans.best_fit(x, [start], 1, ["cpu"])
    assert np.abs(centroids - found_KP).max() < 1e-5
    assert len(np.unique(assign(x, centroids))) == 12


def test_a_gate_on_a_device_places_posts_as_on_the_cpu():
    """cpu:0 is another device by its name."""
    x = np.random.default_rng(0).normal(0, [1, 5, 20], (500, 3)).astype(np.float32)
    whitening = whitening_of(x)
    centroids_KP, _ = fit_kmeans(whitening.apply(x), 7, 10, 1, seed=0)
    gate = Gate(whitening, centroids_KP, np.arange(7) // 2)
    for here, there in zip(gate.nearest(x), gate.nearest(x, "cpu:0"), strict=True):
        assert here == pytest.approx(there, abs=1e-5)
    assert np.array_equal(
        assign(whitening.apply(x), centroids_KP, device="cpu:0"), assign(whitening.apply(x), centroids_KP)
    )


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_the_nearest_centroid_of_each_post_and_of_equals_the_first_whatever_the_part(monkeypatch, device):
    x = np.array([[0, 1], [1, 0], [1, 1]], np.float32)  # the last is as near to both
    for rows in (1, 2, 3):
        monkeypatch.setattr(product, "ROWS_AT_ONCE", rows)
        assert assign(x, np.eye(2, dtype=np.float32), device=device).tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match="features have width 2, centroids have width 3"):
        assign(x, np.eye(3, dtype=np.float32))


def test_more_clusters_than_posts_is_an_error():
    with pytest.raises(ValueError, match=r"wanted 8 clusters, got 5 posts to fit them on: lower partition.experts"):
        fit_kmeans(blobs()[:5], 8, 10, 1, seed=0)


def test_equal_posts_do_not_make_two_clusters():
    with pytest.raises(ValueError, match=r"lower partition.experts|different features"):
        fit_kmeans(np.tile(blobs()[:1], (20, 1)), 2, 10, 1, seed=0)


def test_whitened_posts_have_unit_covariance():
    x = np.random.default_rng(0).normal(0, [1, 5, 20], (500, 3)).astype(np.float32)
    w = whitening_of(x)
    y = (x - w.mean_D) @ w.projection_DP
    assert np.cov(y.T, bias=True) == pytest.approx(np.eye(3), abs=1e-3)


def test_a_direction_without_variance_is_dropped():
    x = np.random.default_rng(0).normal(0, 1, (50, 3)).astype(np.float32)
    x[:, 2] = 7
    assert whitening_of(x).projection_DP.shape == (3, 2)


def test_equal_features_cannot_be_whitened():
    with pytest.raises(ValueError, match="all 50 posts have the same features"):
        whitening_of(np.ones((50, 3), np.float32))


def test_a_whitened_post_is_float32_of_unit_norm_and_the_mean_stays_zero():
    w = Whitening(np.ones(2, np.float32), np.eye(2, dtype=np.float32))
    y = w.apply(np.array([[4, 5], [1, 1]], np.float64))
    assert y.dtype == np.float32
    assert y == pytest.approx(np.array([[0.6, 0.8], [0, 0]]))


def test_no_posts_cannot_be_whitened():
    with pytest.raises(ValueError, match="no posts to fit on"):
        whiten([np.zeros((0, 3), np.float32)], 3)


def test_features_of_another_trunk_are_refused():
    with pytest.raises(ValueError, match="width 2, the partition was fitted on width 3: were they made by different"):
        whitening_of(blobs()).apply(np.zeros((1, 2), np.float32))


def identity_gate(expert_M=(0, 1, 2)):
    return Gate(
        Whitening(np.zeros(3, np.float32), np.eye(3, dtype=np.float32)), np.eye(3, dtype=np.float32), np.array(expert_M)
    )


def test_the_nearest_centroid_answers_and_of_equals_the_first():
    assert identity_gate().assign(np.array([[0, 2, 0], [1, 1, 0]], np.float32)).tolist() == [1, 0]


def test_how_much_farther_the_next_expert_is():
    """Squared distances of unit vectors: 2 - 2 cos. At 45 degrees between two centroids both are as near."""
    expert, own, gap = identity_gate().nearest(np.array([[0, 2, 0], [1, 1, 0]], np.float32))
    assert expert.tolist() == [1, 0]
    assert own == pytest.approx([0, 2 - np.sqrt(2)], abs=1e-6)
    assert gap == pytest.approx([2, 0], abs=1e-6)
    assert identity_gate((0, 0, 0)).nearest(np.eye(3, dtype=np.float32))[2].tolist() == [np.inf] * 3


def test_weights_fall_with_the_distance_and_end_at_the_kth():
    weights = identity_gate().weights(np.array([[2, 1, 0]], np.float32), k=2, temperature=1.0)[0]
    assert weights.sum() == pytest.approx(1)
    assert weights[0] > weights[1] > weights[2] == 0
    # squared distances of unit vectors: 2 - 2*2/sqrt(5) and 2 - 2/sqrt(5)
    assert weights[0] / weights[1] == pytest.approx(np.exp(2 / np.sqrt(5)), rel=1e-4)


def test_a_gate_is_read_as_it_was_written(tmp_path):
    identity_gate((1, 0, 0)).save(tmp_path / "gate.safetensors", {"version": "a"})
    gate, about = load_gate(tmp_path / "gate.safetensors")
    assert gate.assign(np.eye(3, dtype=np.float32)).tolist() == [1, 0, 0]
    assert about == {"version": "a"}


def test_fine_clusters_are_packed_near_equally_and_coherently():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8))
    sizes = rng.integers(50, 150, 64)
    expert = pack(sizes, x / np.linalg.norm(x, axis=1, keepdims=True), 4)
    loads = np.bincount(expert, weights=sizes, minlength=4)
    assert loads.max() / loads.mean() < 1.3
    assert loads.min() > 0


def test_one_large_fine_cluster_does_not_loosen_the_other_experts():
    x = np.random.default_rng(0).normal(size=(41, 8))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    loads = np.bincount(pack(np.array([300] + [15] * 40), x, 4), weights=[300] + [15] * 40)
    assert loads.max() == 300
    assert sorted(loads)[-2] <= 225 * 1.05  # 225 is the mean


def test_every_expert_gets_a_fine_cluster():
    assert sorted(pack(np.array([100, 1, 1]), np.eye(3), 3).tolist()) == [0, 1, 2]


def test_fewer_fine_clusters_than_experts_is_an_error():
    with pytest.raises(ValueError, match=r"2 fine clusters for 3 experts: raise partition.fine"):
        pack(np.array([1, 1]), np.eye(2), 3)


def dealt(folder, ids, sizes, seed=0, old=None, memory=1 << 20):
    """One group of posts, in parts of three."""
    old_N = np.full(len(ids), -1) if old is None else old
    parts = [ids[first : first + 3] for first in range(0, len(ids), 3)]
    group_N = np.zeros(len(ids), np.uint8)
    return random_partition(parts, group_N, np.array([sizes]), seed, old_N, folder / "sorted", memory)


def test_a_random_partition_has_the_sizes_and_follows_from_the_ids(tmp_path):
    ids = [f"p{n}" for n in range(10)]
    cluster = dict(zip(ids, dealt(tmp_path, ids, [7, 3]), strict=True))
    assert list(cluster.values()).count(1) == 3
    backwards = dict(zip(ids[::-1], dealt(tmp_path, ids[::-1], [7, 3]), strict=True))
    assert backwards == cluster
    assert dict(zip(ids, dealt(tmp_path, ids, [7, 3], seed=1), strict=True)) != cluster


def test_a_random_partition_is_the_same_with_little_memory_and_in_each_group_of_many(tmp_path):
    """As from a sorted list of all, group by group."""
    draw, count, seed = np.random.default_rng(0), 9000, 3
    ids, group_N = [f"p{n}" for n in range(count)], draw.integers(0, 3, count).astype(np.uint8)
    old_N, sizes_GK = draw.integers(-1, 4, count), np.zeros((4, 4), int)
    np.add.at(sizes_GK, (group_N, draw.integers(0, 4, count) // 2 * 2), 1)
    order = sorted(range(count), key=lambda n: hashlib.blake2b(f"{seed}:p{n}".encode(), digest_size=16).digest())
    wanted = np.full(count, -1)
    for group in range(3):
        mine = [n for n in order if group_N[n] == group]
        for k in range(4):
            wanted[[n for n in mine if old_N[n] == k][: sizes_GK[group, k]]] = k
        rest = [n for n in mine if wanted[n] < 0]
        room = sizes_GK[group] - np.bincount(wanted[[n for n in mine if wanted[n] >= 0]], minlength=4)
        wanted[rest] = np.repeat(np.arange(4), room)
    for memory in (1, 1 << 26):
        found = random_partition([ids[:5000], ids[5000:]], group_N, sizes_GK, seed, old_N, tmp_path / "sorted", memory)
        assert found.tolist() == wanted.tolist()


def test_clusters_go_on_from_their_means_and_a_new_one_is_half_of_the_worst_served():
    """Of the three heaps two lie in one cluster: that is the one to be halved."""
    old_N = np.repeat([0, 1, 1], 30)
    start_KP = starts(blobs(), old_N, 3, iterations=10, seed=0)
    assert start_KP @ np.eye(3)[0] == pytest.approx([1, 0, 0], abs=0.1)
    assert sorted((start_KP[1:] @ np.eye(3)[1:].T).round().astype(int).tolist()) == [[0, 1], [1, 0]]
    centroids_KP, _ = fit_kmeans(blobs(), 3, 10, 1, seed=0, start_KP=start_KP)
    assert (centroids_KP * start_KP).sum(1).min() > 0.99


def test_a_post_that_was_in_no_cluster_does_not_pull_at_a_start():
    old_N = np.repeat([0, 1, -1], 30)
    assert starts(blobs(), old_N, 2, 10, 0)[:, 2] == pytest.approx([0, 0], abs=0.1)


def test_new_clusters_continue_the_old_ones_with_most_of_their_posts():
    old = np.array([0, 0, 0, 1, 1, 2, -1])
    new = np.array([2, 2, 1, 0, 0, 1, 1])
    counted = overlap(new, old, 3)
    assert counted.tolist() == [[0, 1, 2], [2, 0, 0], [0, 1, 0]]
    assert continued_by(counted).tolist() == [2, 0, 1]
    assert continued_by(np.zeros((3, 3), int)).tolist() == [0, 1, 2], "without posts, by number"
    assert continued_by(np.array([[0, 0], [5, 0]])).tolist() == [1, 0], "who has posts chooses first"


def test_fine_clusters_keep_their_expert_where_the_balance_lets_them():
    x = np.repeat(np.eye(3), 2, axis=0)
    even = np.full(6, 10)
    assert repack(even, x, np.array([0, 0, 1, 1, 2, 2]), 3).tolist() == [0, 0, 1, 1, 2, 2]
    moved = repack(even, x, np.array([0, 0, 0, 1, 2, 2]), 3)
    assert moved.tolist() == [0, 0, 1, 1, 2, 2], "the one that lies with the other gives way"
    assert repack(even, x, np.array([0, 0, 1, 1, -1, -1]), 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert sorted(np.bincount(repack(even, x, np.array([0, 0, 0, 1, 1, 1]), 3)).tolist()) == [2, 2, 2]
    with pytest.raises(ValueError, match="2 fine clusters for 3 experts"):
        repack(even[:2], x[:2], np.array([0, 1]), 3)


def test_a_random_partition_that_goes_on_moves_no_more_than_its_sizes_ask_for(tmp_path):
    ids = [f"p{n}" for n in range(8)]
    old = np.array([0, 0, 0, 0, 1, 1, -1, -1])
    grown = dealt(tmp_path, ids, [5, 3], 0, old)
    assert grown[:6].tolist() == old[:6].tolist()
    assert sorted(grown[6:].tolist()) == [0, 1]
    shrunk = dealt(tmp_path, ids, [2, 6], 0, old)
    assert np.bincount(shrunk).tolist() == [2, 6]
    assert (shrunk[:4] == 0).sum() == 2
    assert shrunk[4:].tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="sizes sum to 7, got 8 posts"):
        dealt(tmp_path, ids, [4, 3], 0, old)


def test_faiss_finds_the_same_centroids_on_tensors_where_they_lie():
    """Here on the CPU; on a GPU by the function of the same arguments (`tests/gpu`)."""
    x = blobs(200)
    centroids = x[[0, 250, 450, 1]]
    found = [search(torch.from_numpy(x), torch.from_numpy(centroids)) for search in (by_torch, by_faiss)]
    assert torch.equal(found[0][1], found[1][1])
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6)
    fits = [device_kmeans.best_fit(x, [centroids], 10, ["cpu"], search) for search in (by_torch, by_faiss)]
    assert fits[1][0] == pytest.approx(fits[0][0], abs=1e-5)
    assert fits[1][1] == pytest.approx(fits[0][1], rel=1e-5)


@pytest.mark.parametrize(
    ("device", "sees", "wanted"), [("cpu", True, by_torch), ("cuda:1", True, by_faiss), ("cuda:1", False, by_torch)]
)
def test_faiss_searches_where_its_build_sees_a_gpu(monkeypatch, device, sees, wanted):
    monkeypatch.setattr("moe_core.clustering.device_search.sees_gpus", lambda: sees)
    assert search_for(device) is wanted


def test_whitening_is_fitted_by_the_same_sums_on_a_device():
    x = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32) * np.arange(1, 7, dtype=np.float32)
    here, there = (whiten([x[:200], x[200:]], 4, device) for device in ("cpu", "cpu:0"))  # the second as on a GPU
    assert there.mean_D == pytest.approx(here.mean_D, abs=1e-6)
    assert there.projection_DP == pytest.approx(here.projection_DP, abs=1e-6)
