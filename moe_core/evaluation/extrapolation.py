"""What a gain would be with all of the training, from gains that were measured with small shares of it.

A law has two numbers, fitted to the shares by least squares: the gain at a share of one, and how fast it gets there.
Two forms are tried: linear in log2(share), so that each doubling adds the same, and a - b share^-1/2, so that each adds
less. Both are linear in what was measured: the gain at a share of one is a weighted sum of the gains at the shares,
post by post, and its bootstrap is one of these sums.

Letters: S shares, C clusters that were drawn, K clusters there are, N posts of a cluster, R resamples, F forms.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moe_core.evaluation.metrics import resampled_means

FORMS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "logarithm": np.log2,
    "root": lambda share: -(share**-0.5),
}
SEEDS = 0.004  # standard deviation of a gain over seeds: 0.3 to 0.4 points, docs/history/results.md
RESAMPLES = 2000  # of which each form has its part
NORMAL = 1.96  # standard deviations to either side that hold 95 % of a normal distribution


@dataclass(frozen=True)
class Sampled:
    """Gains of one K on the posts of the clusters that were drawn."""

    clusters: int  # K
    gains: Sequence[np.ndarray]  # (S, N) of each of C clusters
    weight_C: np.ndarray  # of each cluster in the mean over posts; of sum 1

    @property
    def mean_S(self) -> np.ndarray:
        """The gain at each share."""
        gain_CS = np.stack([gain_SN.mean(1) for gain_SN in self.gains])
        mean_S: np.ndarray = self.weight_C @ gain_CS
        return mean_S


@dataclass(frozen=True)
class Estimate:
    """A gain at a share of one, with its 95 % interval."""

    mean: float
    low: float
    high: float
    above_zero: float  # share of the resamples
    forms: Mapping[str, float]  # by each form alone
    parts: Mapping[str, float]  # half the 95 % interval that each source of doubt alone would give


def weights(form: str, share_S: np.ndarray) -> np.ndarray:
    """(S,): the gain at a share of one is this sum of the gains at the shares."""
    place_S = FORMS[form](share_S)
    design_S2 = np.stack([np.ones(len(share_S)), place_S], 1)
    found_S: np.ndarray = np.array([1.0, FORMS[form](np.ones(1))[0]]) @ np.linalg.pinv(design_S2)
    return found_S


def curve(form: str, share_S: np.ndarray, gain_S: np.ndarray, at_M: np.ndarray) -> np.ndarray:
    """(M,): the fitted law at other shares."""
    slope, level = np.polyfit(FORMS[form](share_S), gain_S, 1)
    fitted_M: np.ndarray = level + slope * FORMS[form](at_M)
    return fitted_M


def estimates(sampled: Sequence[Sampled], share_S: np.ndarray, seed: int, resamples: int = RESAMPLES) -> list[Estimate]:
    """The gain of each K at a share of one.

    Its interval holds the percentiles over resamples of which each form of the law has as many. In each, posts are
    drawn with replacement within each cluster, the same for all shares; the mean over clusters moves by what clusters
    differ beyond their posts, as for C of K clusters; each share and the gain at one move by what seeds do, and each
    share by what gains lie beside the law. How much clusters differ is one number for all K of a form, since C is
    small, and is itself in doubt: with f degrees of freedom its square is that of the clusters times f / chi^2(f).
    """
    draw = np.random.default_rng([seed, 1])
    means: list[list[np.ndarray]] = [[] for _ in sampled]
    parts: list[list[dict[str, float]]] = [[] for _ in sampled]
    values: list[dict[str, float]] = [{} for _ in sampled]
    each = max(1, resamples // len(FORMS))
    for form in FORMS:
        weight_S = weights(form, share_S)
        of_posts = [[weight_S @ gain_SN for gain_SN in one.gains] for one in sampled]
        spread_R = _between(of_posts, each, draw)
        length = float(np.linalg.norm(weight_S))
        of_seeds, of_fit = SEEDS * float(np.sqrt(1 + length**2)), _misfit(form, sampled, share_S) * length
        for number, (one, posts) in enumerate(zip(sampled, of_posts, strict=True)):
            resampled = [resampled_means(v_N, each, 100 * seed + place) for place, v_N in enumerate(posts)]
            mean_R = np.einsum("c,cr->r", one.weight_C, np.stack(resampled))
            left_out = 1 - len(posts) / one.clusters  # none where all clusters were drawn
            cluster_R = spread_R * np.sqrt((one.weight_C**2).sum() * left_out) * draw.standard_normal(each)
            rest_R = float(np.hypot(of_seeds, of_fit)) * draw.standard_normal(each)
            means[number].append(mean_R + cluster_R + rest_R)
            values[number][form] = float(weight_S @ one.mean_S)
            drawn = {"posts": _half(mean_R), "clusters": _half(cluster_R)}
            parts[number].append({**drawn, "seeds": NORMAL * of_seeds, "fit": NORMAL * of_fit})
    return [_estimate(np.concatenate(m), v, p) for m, v, p in zip(means, values, parts, strict=True)]


def _misfit(form: str, sampled: Sequence[Sampled], share_S: np.ndarray) -> float:
    """How far the gains at a share lie from the law beyond what seeds and clusters explain: a standard deviation, one
    for all K."""
    design_S2 = np.stack([np.ones(len(share_S)), FORMS[form](share_S)], 1)
    beside_S = np.linalg.svd(design_S2.T)[2][-1]  # of norm one: what no law of this form has
    found = list[float]()
    for one in sampled:
        aside_C = np.array([beside_S @ gain_SN.mean(1) for gain_SN in one.gains])
        mean = float(one.weight_C @ aside_C)
        spread = len(aside_C) / max(len(aside_C) - 1, 1) * float((one.weight_C**2 * (aside_C - mean) ** 2).sum())
        found.append(mean**2 - spread)
    return max(0.0, float(np.mean(found)) - SEEDS**2) ** 0.5


def _between(of_posts: Sequence[Sequence[np.ndarray]], resamples: int, draw: np.random.Generator) -> np.ndarray:
    """(R,): draws of the standard deviation between clusters that is more than that of the posts in them."""
    freedom, between, within = 0, 0.0, 0.0
    for posts in of_posts:
        means_C = np.array([v_N.mean() for v_N in posts])
        freedom += len(posts) - 1
        between += float(((means_C - means_C.mean()) ** 2).sum())
        within += (len(posts) - 1) * float(np.mean([v_N.var() / len(v_N) for v_N in posts]))
    if not freedom:
        return np.zeros(resamples)
    doubt_R = freedom / draw.chisquare(freedom, resamples)
    spread_R: np.ndarray = np.sqrt(np.maximum(0.0, between * doubt_R - within) / freedom)
    return spread_R


def _ends(values_R: np.ndarray) -> tuple[float, float]:
    """Of the 95 % interval."""
    low, high = np.quantile(values_R, [0.025, 0.975])
    return float(low), float(high)


def _half(values_R: np.ndarray) -> float:
    low, high = _ends(values_R)
    return (high - low) / 2


def _estimate(mean_R: np.ndarray, values: Mapping[str, float], parts: Sequence[Mapping[str, float]]) -> Estimate:
    low, high = _ends(mean_R)
    half = {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}
    half["form"] = (max(values.values()) - min(values.values())) / 2
    above = float((mean_R > 0).mean())
    return Estimate(float(np.mean(list(values.values()))), low, high, above, dict(values), half)


def chosen(rows: Mapping[int, Estimate]) -> int | None:
    """Of the K that are estimated to gain, the one whose interval has the highest lower end; None where none is.

    Zero may be in its interval: training the trunk on costs the same, so the better estimate is the better choice.
    """
    gaining = [experts for experts, one in rows.items() if one.mean > 0]
    return max(gaining, key=lambda experts: rows[experts].low, default=None)


def draw_clusters(size_K: np.ndarray, count: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of at most `count` clusters (C,), rising; their weights (C,) in the mean over all posts).

    Drawn without replacement with probability in proportion to size (systematic sampling of a random order); a cluster
    of at least 1/count of what is left is taken in any case. So each weighs its size over its probability (Hajek).
    """
    there = np.flatnonzero(size_K)
    if len(there) <= count:
        return there, size_K[there] / size_K[there].sum()
    chance_K = np.zeros(len(size_K))
    certain = np.zeros(len(size_K), bool)
    while True:
        rest = there[~certain[there]]
        left = count - int(certain.sum())
        chance_K[rest] = left * size_K[rest] / size_K[rest].sum()
        if not (larger := rest[chance_K[rest] >= 1]).size:
            break
        certain[larger] = True
        chance_K[larger] = 1
    order = draw.permutation(rest)
    ends = np.concatenate([[0.0], np.cumsum(chance_K[order])])
    taken = np.searchsorted(ends, draw.random() + np.arange(left), side="right") - 1
    numbers = np.sort(np.concatenate([np.flatnonzero(certain), order[np.minimum(taken, len(order) - 1)]]))
    weight_C = size_K[numbers] / chance_K[numbers]
    return numbers, weight_C / weight_C.sum()
