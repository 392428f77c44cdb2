"""mAP of every row; measures by hashtag and by band of hashtags of the published row and what it is compared with.

Memory grows with the tags of the test posts, with the hashtags, and with what `RankedPosts` keeps, never with posts x
hashtags.

Letters: N posts, B of a part, V hashtags, T tags of all test posts, K best hashtags, R resamples.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor

from moe_core.evaluation.bands import BANDS, DEFINITION, band_means, band_of
from moe_core.evaluation.metrics import BEST, interval_of
from moe_core.evaluation.ranking import RankedPosts, resamples_for, sample_of, weights_of
from moe_core.training.posts import Posts

COMPARED = ("trunk", "trunk_same_budget", "dense_same_cost")  # beside the published row, where the study has them
TOP = 5  # best hashtags among which a tag counts as found
RECALLS = {"r_at_5": 5, "r_at_10": 10}
MISTAKES = 5  # hashtags named that a hashtag is mistaken for

Means = dict[str, np.ndarray]  # by measure: (R + 1, bands), first of the posts themselves


class RowTags:
    """What is kept of a row: the place of each tag of the test posts among the best hashtags."""

    def __init__(self, tags: int, hashtags: int) -> None:
        self.place_T = np.full(tags, BEST, np.uint8)  # BEST: not among them
        self.given_V = np.zeros(hashtags, np.int64)  # how often among the first TOP


class Hashtags:
    """Counts by hashtag while the rows of the table are scored, a part of the posts at a time."""

    def __init__(self, published: str, hashtags: int, posts: Posts) -> None:
        self.published, self.hashtags, self.posts = published, hashtags, posts
        self.sample = sample_of(len(posts))
        self.rows: dict[str, RowTags] = {}  # of the published row and the compared
        self.ranked: dict[str, RankedPosts] = {}  # of every row
        self._place_N = np.full(len(posts), -1)
        self._place_N[self.sample] = np.arange(len(self.sample))
        self._starts_N1 = posts.starts_N1.numpy()
        self._mistakes: list[np.ndarray] = []  # hashtag x V + the one in its place

    def add(
        self, name: str, places_B: np.ndarray, p_BV: Tensor, best_BK: Tensor, tags_T: Tensor, starts_B1: Tensor
    ) -> None:
        """Counts a row's answers to the posts at these places of all."""
        counts_B, best_bk = np.diff(starts_B1.numpy()), best_BK.numpy()
        owner_T = np.repeat(np.arange(len(places_B)), counts_B)
        drawn = np.flatnonzero(self._place_N[places_B] >= 0)
        some_T = self._place_N[places_B][owner_T] >= 0
        if name not in self.ranked:
            self.ranked[name] = RankedPosts(len(self.sample), self.hashtags)
        if drawn.size:
            starts = np.concatenate([[0], counts_B[drawn].cumsum()])
            some_BV = p_BV if len(drawn) == len(p_BV) else p_BV[drawn]
            self.ranked[name].add(self._place_N[places_B[drawn]], some_BV, tags_T[some_T], starts_B1.new_tensor(starts))
        if name not in (self.published, *COMPARED):
            return
        row = self.rows.get(name) or RowTags(len(self.posts.tags_T), self.hashtags)
        self.rows[name] = row
        found_TK = best_bk[owner_T] == tags_T.numpy()[:, None]
        place_T = np.where(found_TK.any(1), found_TK.argmax(1), BEST)
        offset_T = np.arange(len(owner_T)) - starts_B1.numpy()[owner_T]
        row.place_T[self._starts_N1[places_B][owner_T] + offset_T] = place_T
        row.given_V += np.bincount(best_bk[:, :TOP].ravel(), minlength=self.hashtags)
        if name == self.published:
            self._add_mistakes(best_bk, tags_T.numpy(), owner_T, place_T, counts_B, some_T)

    def _add_mistakes(
        self,
        best_BK: np.ndarray,
        tags_T: np.ndarray,
        owner_T: np.ndarray,
        place_T: np.ndarray,
        counts_B: np.ndarray,
        some_T: np.ndarray,
    ) -> None:
        """Of each tag that is not among as many answers as its post has tags: the wrong ones among these."""
        given_BK = np.arange(best_BK.shape[1]) < counts_B[:, None]
        right_T = place_T < best_BK.shape[1]
        given_BK[owner_T[right_T], place_T[right_T]] = False
        missed = np.flatnonzero(some_T & (place_T >= counts_B[owner_T].clip(max=best_BK.shape[1])))
        tag, answer = np.nonzero(given_BK[owner_T[missed]])
        keys = tags_T[missed][tag] * self.hashtags + best_BK[owner_T[missed][tag], answer]
        self._mistakes.append(keys.astype(np.int64))

    def _mistaken(self, names: Sequence[str]) -> pl.Series:
        """(V,) of lists: the hashtags that are given in the place of each, and how often, the most frequent first."""
        keys, counts = np.unique(np.concatenate([np.zeros(0, np.int64), *self._mistakes]), return_counts=True)
        pairs = pl.DataFrame({"id": keys // self.hashtags, "other": keys % self.hashtags, "n": counts.astype(np.int64)})
        first = pairs.sort("id", "n", "other", descending=[False, True, False]).group_by("id", maintain_order=True)
        named = first.head(MISTAKES)
        named = named.with_columns(pl.Series(names, dtype=pl.String).gather(named["other"]).alias("tag"))
        lists = named.group_by("id", maintain_order=True).agg(pl.struct("tag", "n").alias("mistaken_for"))
        every = pl.DataFrame({"id": np.arange(self.hashtags)})
        return every.join(lists, on="id", how="left", maintain_order="left")["mistaken_for"].fill_null([])

    @property
    def ranked_hashtags(self) -> int:
        """How many hashtags mAP is averaged over: those that a ranked post carries."""
        return len(np.unique(self.posts.tag_rows(self.sample)[0].numpy()))

    def measure(
        self, training_V: np.ndarray, resamples: int
    ) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(`bands` of table.json; (V,) average precision of each row; (R + 1,) mAP of each row, first of the posts
        themselves), given the training posts of each hashtag."""
        band_V = band_of(training_V)
        ap: dict[str, np.ndarray] = {}
        map_R1: dict[str, np.ndarray] = {}
        names = sorted(self.rows, key=lambda name: name != self.published)
        means: dict[str, Means] = {name: {} for name in names}
        tags_T, starts_N1 = (part.numpy() for part in self.posts.tag_rows(self.sample))
        for name, ranked in self.ranked.items():
            drawn = ranked.resampled(tags_T, starts_N1, resamples, seed=0)
            ap[name] = next(drawn)
            found = [(np.nanmean(ap_V), band_means(ap_V, band_V)) for ap_V in chain([ap[name]], drawn)]
            map_R1[name] = np.array([mean for mean, _ in found])
            if name in means:
                means[name]["map"] = np.stack([of_bands for _, of_bands in found])
        self._add_recalls(means, band_V, resamples_for(len(self.posts.tags_T), resamples))
        test_V = np.bincount(self.posts.tags_T.numpy(), minlength=self.hashtags)
        bands = [
            self._counts(number, band_V, training_V, test_V) | self._figures(number, means)
            for number in range(len(BANDS))
        ]
        document = {
            "definition": DEFINITION,
            "n": len(self.posts),
            "map_posts": len(self.sample),
            "kept": self.ranked[self.published].kept,
            "bands": [band for band in bands if band["hashtags"]],
        }
        return document, ap, map_R1

    def _add_recalls(self, means: Mapping[str, Means], band_V: np.ndarray, resamples: int) -> None:
        """The mean over hashtags of the share of its posts in which each is found, by band."""
        posts, tags_T = len(self.posts), self.posts.tags_T.numpy()
        owner_T = np.repeat(np.arange(posts), np.diff(self._starts_N1))
        kept: dict[tuple[str, str], list[np.ndarray]] = {(n, m): [] for n in self.rows for m in RECALLS}
        for weight_N in weights_of(posts, resamples, seed=0):
            weight_T = weight_N[owner_T]
            total_V = np.bincount(tags_T, weight_T, self.hashtags)
            for (name, measure), values in kept.items():
                found_T = self.rows[name].place_T < RECALLS[measure]
                found_V = np.bincount(tags_T[found_T], weight_T[found_T], self.hashtags)
                recall_V = np.where(total_V > 0, found_V / np.maximum(total_V, 1), np.nan)
                values.append(band_means(recall_V, band_V))
        for (name, measure), values in kept.items():
            means[name][measure] = np.stack(values)

    def _counts(self, number: int, band_V: np.ndarray, training_V: np.ndarray, test_V: np.ndarray) -> dict[str, Any]:
        """Hashtags and posts of a band."""
        of_band_V = band_V == number
        posts_V = training_V[of_band_V]
        of_band_T = of_band_V[self.posts.tags_T.numpy()]
        carrying = np.searchsorted(self._starts_N1, np.flatnonzero(of_band_T), side="right")
        return {
            "band": BANDS[number],
            "hashtags": int(of_band_V.sum()),
            "from_posts": int(posts_V.min()) if len(posts_V) else 0,
            "to_posts": int(posts_V.max(initial=0)),
            "hashtags_tested": int((of_band_V & (test_V > 0)).sum()),
            "test_tags": int(of_band_T.sum()),
            "test_posts": len(np.unique(carrying)),
        }

    def _figures(self, number: int, means: Mapping[str, Means]) -> dict[str, Any]:
        """Of a band: each row's measures with their intervals, and what the published row gains on each other."""
        rows, gains = {}, {}
        for name, row in means.items():
            values = {measure: values[:, number] for measure, values in row.items()}
            rows[name] = _columns(values, "")
            if name != self.published:
                published = {m: means[self.published][m][:, number] for m in values}
                gains[name] = _columns({m: published[m] - values[m] for m in values}, "_gain")
        return {"rows": rows, "gains": gains}

    def frame(
        self,
        names: Sequence[str],
        training_V: np.ndarray,
        ap: Mapping[str, np.ndarray],
        thresholds: Mapping[str, np.ndarray],
    ) -> pl.DataFrame:
        """A row for each hashtag, by its id; `thresholds`: (V,) threshold, right and given of it, NaN where none is
        stored."""
        tags_T = self.posts.tags_T.numpy()
        test_V = np.bincount(tags_T, minlength=self.hashtags)
        sampled_V = np.bincount(self.posts.tag_rows(self.sample)[0].numpy(), minlength=self.hashtags)
        published, stored_V = self.rows[self.published], np.isfinite(thresholds["threshold"])
        found = {
            name: np.bincount(tags_T[row.place_T < TOP], minlength=self.hashtags) for name, row in self.rows.items()
        }
        right_V = np.where(stored_V, thresholds["right"], found[self.published])
        given_V = np.where(stored_V, thresholds["given"], published.given_V)
        columns: dict[str, Any] = {
            "tag": list(names),
            "band": [BANDS[band] for band in band_of(training_V)],
            "training_posts": training_V,
            "test_posts": test_V,
            "cut": np.where(stored_V, "threshold", f"top {TOP}"),
            "threshold": _nullable(thresholds["threshold"]),
            "right": right_V.astype(np.int64),
            "given": given_V.astype(np.int64),
            "precision": _nullable(_share(right_V, given_V)),
            "recall": _nullable(_share(right_V, test_V)),
            "map_posts": sampled_V,
        }
        for name in (self.published, *(name for name in self.rows if name != self.published)):
            prefix = "" if name == self.published else f"{name}_"
            columns[f"{prefix}ap"] = _nullable(ap[name])
            columns[f"{prefix}recall_at_{TOP}"] = _nullable(_share(found[name], test_V))
        columns["ap_gain"] = _nullable(ap[self.published] - ap["trunk"])
        columns[f"recall_at_{TOP}_gain"] = _nullable(_share(found[self.published] - found["trunk"], test_V))
        columns["mistaken_for"] = self._mistaken(names)
        return pl.DataFrame(columns)


def _columns(values: Mapping[str, np.ndarray], suffix: str) -> dict[str, Any]:
    """Means with 95 % intervals, given those of the posts and then of the resamples; null where there are none."""
    columns: dict[str, Any] = {}
    for measure, values_R1 in values.items():
        name = f"{measure}{suffix}"
        if not np.isfinite(values_R1[0]):
            columns |= {name: None, f"{name}_ci95": None}
            continue
        columns |= interval_of(values_R1, 0).as_json(name)
    return columns


def _share(part_V: np.ndarray, of_V: np.ndarray) -> np.ndarray:
    return np.where(of_V > 0, part_V / np.maximum(of_V, 1), np.nan)


def _nullable(values_V: np.ndarray) -> pl.Series:
    return pl.Series(values_V.astype(np.float64)).round(5).fill_nan(None)
