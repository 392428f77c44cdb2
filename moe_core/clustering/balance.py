"""Fine clusters packed into experts of near-equal size that stay coherent.

Letters: M fine clusters, P dimensions, K experts.
"""

import numpy as np

from moe_core.errors import BadSetting

SLACK = 1.05  # of the mean size that an expert may hold; a larger fine cluster gets an expert of its own
ROUNDS = 10


def pack(sizes_M: np.ndarray, centroids_MP: np.ndarray, experts: int) -> np.ndarray:
    """(M,) int64: the expert of each fine cluster. Every expert gets at least one.

    Alternates, like k-means with a capacity, between filling experts with the fine clusters that would lose most by
    going elsewhere and moving each expert's center to the mean of what it holds. Raises BadSetting when M < K.
    """
    fine = len(sizes_M)
    if fine < experts:
        raise BadSetting(f"{fine} fine clusters for {experts} experts: raise partition.fine to at least the latter")
    capacity = sizes_M.sum() / experts * SLACK
    centers_KP = centroids_MP[_spread(sizes_M, centroids_MP, experts)]
    for _ in range(ROUNDS):
        expert_M = _fill(sizes_M, centroids_MP @ centers_KP.T, capacity)
        for expert in range(experts):
            centers_KP[expert] = _center(sizes_M, centroids_MP, expert_M, expert)
    return expert_M


def repack(sizes_M: np.ndarray, centroids_MP: np.ndarray, expert_M: np.ndarray, experts: int) -> np.ndarray:
    """(M,) int64: as `pack`, from the experts that fine clusters have (-1: none), moving only what a balance takes.

    Fine clusters without an expert go to the nearest with room; an expert without any gets one from the fullest; then
    the fullest give away what loses least, as long as they hold too much and another has room.
    """
    if len(sizes_M) < experts:
        raise BadSetting(f"{len(sizes_M)} fine clusters for {experts} experts: raise partition.fine to the latter")
    expert_M = expert_M.copy()
    capacity = sizes_M.sum() / experts * SLACK
    for m in sorted(np.flatnonzero(expert_M < 0).tolist(), key=lambda m: -sizes_M[m]):
        expert_M[m] = _best(m, sizes_M, centroids_MP, expert_M, experts, capacity)
    for expert in range(experts):
        if not (expert_M == expert).any():
            counts_K = np.bincount(expert_M, minlength=experts)
            giver = int(np.where(counts_K > 1, _loads(sizes_M, expert_M, experts), -1).argmax())
            members = np.flatnonzero(expert_M == giver)
            similarity_m = centroids_MP[members] @ _center(sizes_M, centroids_MP, expert_M, giver)
            expert_M[members[similarity_m.argmin()]] = expert
    for _ in range(len(sizes_M)):
        load_K = _loads(sizes_M, expert_M, experts)
        giver = int(load_K.argmax())
        members = np.flatnonzero(expert_M == giver)
        centers_KP = np.stack([_center(sizes_M, centroids_MP, expert_M, k) for k in range(experts)])
        similarity_mK = centroids_MP[members] @ centers_KP.T
        room_mK = load_K + sizes_M[members, None] <= capacity
        room_mK[:, giver] = False
        if load_K[giver] <= capacity or len(members) == 1 or not room_mK.any():
            break
        gain_mK = np.where(room_mK, similarity_mK - similarity_mK[:, [giver]], -np.inf)
        which, taker = np.unravel_index(int(gain_mK.argmax()), gain_mK.shape)
        expert_M[members[which]] = taker
    return expert_M


def _loads(sizes_M: np.ndarray, expert_M: np.ndarray, experts: int) -> np.ndarray:
    held = expert_M >= 0
    return np.bincount(expert_M[held], weights=sizes_M[held], minlength=experts)


def _center(sizes_M: np.ndarray, centroids_MP: np.ndarray, expert_M: np.ndarray, expert: int) -> np.ndarray:
    members = expert_M == expert
    center_P: np.ndarray = (sizes_M[members, None] * centroids_MP[members]).sum(0)
    return center_P / max(float(np.linalg.norm(center_P)), 1e-12)


def _best(
    m: int, sizes_M: np.ndarray, centroids_MP: np.ndarray, expert_M: np.ndarray, experts: int, capacity: float
) -> int:
    """The nearest expert with room for a fine cluster, else the emptiest."""
    load_K = _loads(sizes_M, expert_M, experts)
    room_K = load_K + sizes_M[m] <= capacity
    centers_KP = np.stack([_center(sizes_M, centroids_MP, expert_M, k) for k in range(experts)])
    return int(np.where(room_K, centers_KP @ centroids_MP[m], -np.inf).argmax() if room_K.any() else load_K.argmin())


def _spread(sizes_M: np.ndarray, centroids_MP: np.ndarray, experts: int) -> list[int]:
    """The largest fine cluster, then again and again the one farthest from all chosen."""
    chosen = [int(sizes_M.argmax())]
    nearest_M = centroids_MP @ centroids_MP[chosen[0]]
    while len(chosen) < experts:
        nearest_M[chosen] = np.inf
        chosen.append(int(nearest_M.argmin()))
        nearest_M = np.maximum(nearest_M, centroids_MP @ centroids_MP[chosen[-1]])
    return chosen


def _fill(sizes_M: np.ndarray, similarity_MK: np.ndarray, capacity: float) -> np.ndarray:
    fine, experts = similarity_MK.shape
    ranked_MK = np.sort(similarity_MK, axis=1)
    regret_M = ranked_MK[:, -1] - ranked_MK[:, -2] if experts > 1 else np.zeros(fine)
    expert_M = np.full(fine, -1)
    load_K = np.zeros(experts)
    large_M = sizes_M > capacity  # first, while experts are empty: they must not raise the capacity of all others
    for place, m in enumerate(np.lexsort((-regret_M * np.maximum(sizes_M, 1), ~large_M))):
        empty_K = ~np.isin(np.arange(experts), expert_M)
        room_K = empty_K if large_M[m] else load_K + sizes_M[m] <= capacity
        if empty_K.sum() >= fine - place:  # the rest is just enough to give each empty expert one
            room_K = empty_K
        best = np.where(room_K, similarity_MK[m], -np.inf).argmax() if room_K.any() else load_K.argmin()
        expert_M[m] = best
        load_K[best] += sizes_M[m]
    return expert_M
