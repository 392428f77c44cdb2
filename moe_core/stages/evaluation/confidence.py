"""How far the published answer's probabilities can be trusted on test posts: thresholds and temperature that validation
posts gave, and what these posts show of them.

Letters: N posts, B of a part, V hashtags, P wanted precisions.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_core.evaluation.calibration import DEFINITION, calibration, scaled
from moe_core.evaluation.metrics import Interval, bootstrap_ratio, tag_probabilities
from moe_core.evaluation.thresholds import ERRORS, MIN_POSITIVES, Curves
from moe_core.serving.bundle import Bundle

WANTED = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)  # precisions that are tried
HASHTAGS = 12  # shown one by one: those that most validation posts carry
OF_HASHTAGS = 0.8  # the precision of their thresholds that are shown


class Confidence:
    """What is kept of each test post's published answer."""

    def __init__(self, bundle: Bundle, posts: int) -> None:
        self.bundle = bundle
        self.first_N, self.scaled_N, self.right_N = (np.zeros(posts) for _ in range(3))
        self.tags_N = np.zeros(posts)
        self.true_PN, self.above_PN = (np.zeros((len(WANTED), posts)) for _ in range(2))
        self.true_V, self.above_V = (np.zeros(len(bundle.hashtags), np.int64) for _ in range(2))  # at OF_HASHTAGS
        curves = bundle.curves
        self._limits = [torch.from_numpy(curves.thresholds(wanted)) for wanted in WANTED] if curves else []

    def add(self, places_B: np.ndarray, p_BV: Tensor, right_B: np.ndarray, tags_T: Tensor, starts_B1: Tensor) -> None:
        """`right_B`: whether each post carries the first hashtag of its answer."""
        self.first_N[places_B], self.right_N[places_B] = p_BV.amax(1).cpu().numpy(), right_B
        self.tags_N[places_B] = starts_B1.diff().numpy()
        temperature = self.bundle.calibration_temperature or 1.0
        self.scaled_N[places_B] = scaled(p_BV, temperature).amax(1).cpu().numpy()
        p_T, owner_T = tag_probabilities(p_BV, tags_T, starts_B1), np.repeat(places_B, starts_B1.diff().numpy())
        for number, (wanted, limit_V) in enumerate(zip(WANTED, self._limits, strict=False)):
            given_BV, found_T = p_BV >= limit_V.to(p_BV.device), (p_T >= limit_V[tags_T]).numpy()
            self.above_PN[number, places_B] = given_BV.sum(1).cpu().numpy()
            np.add.at(self.true_PN[number], owner_T[found_T], 1)
            if wanted == OF_HASHTAGS:
                self.above_V += given_BV.sum(0).cpu().numpy()
                np.add.at(self.true_V, tags_T.numpy()[found_T], 1)

    def as_json(self, resamples: int) -> dict[str, Any]:
        """`calibration` and `thresholds` of table.json; the latter null in a mixture without."""
        curves = self.bundle.curves
        return {
            "calibration": self._calibration(),
            "thresholds": self._thresholds(curves, resamples) if curves else None,
        }

    def thresholds(self) -> dict[str, np.ndarray]:
        """(V,) float64: `threshold` of each hashtag for a precision of OF_HASHTAGS, NaN where it has none; how many
        test posts are `given` the hashtag by it, and of these the `right` ones."""
        limit_V = np.full(len(self.true_V), np.nan)
        if self.bundle.curves:
            stored_V = self.bundle.curves.thresholds(OF_HASHTAGS).astype(float)
            limit_V = np.where(np.isfinite(stored_V), stored_V, np.nan)
        return {"threshold": limit_V, "right": self.true_V.astype(float), "given": self.above_V.astype(float)}

    def _calibration(self) -> dict[str, Any]:
        before, after = (calibration(p_N, self.right_N) for p_N in (self.first_N, self.scaled_N))
        return {
            "definition": DEFINITION,
            "n": len(self.first_N),
            "temperature": self.bundle.calibration_temperature,
            "ece": round(before.ece, 4),
            "ece_scaled": round(after.ece, 4),
            "bins": before.as_json(),
            "bins_scaled": after.as_json(),
        }

    def _thresholds(self, curves: Curves, resamples: int) -> dict[str, Any]:
        rows = []
        for number, wanted in enumerate(WANTED):
            place_V = curves.places(wanted)
            places = place_V[place_V >= 0]
            true, above = int(curves.true_C[places].sum()), int(curves.above_C[places].sum())
            row = {"wanted": wanted, "hashtags": len(places), "given": int(self.above_PN[number].sum())}
            if above:
                row |= {"validation_precision": round(true / above, 4)}
                row |= {"validation_recall": round(true / int(curves.positives_V.sum()), 4)}
            if row["given"]:
                row |= self._ratio(self.true_PN[number], self.above_PN[number], resamples).as_json("precision")
                row |= self._ratio(self.true_PN[number], self.tags_N, resamples).as_json("recall")
            rows.append(row)
        most_first = np.argsort(-curves.positives_V, kind="stable")[:HASHTAGS]
        return {
            "validation_posts": curves.posts,
            "fewest_positives": MIN_POSITIVES,
            "standard_errors": ERRORS,
            "wanted": rows,
            "of_hashtags": OF_HASHTAGS,
            "hashtags": [self._of_hashtag(curves, v) for v in most_first.tolist() if curves.positives_V[v]],
        }

    def _ratio(self, true_N: np.ndarray, of_N: np.ndarray, resamples: int) -> Interval:
        return bootstrap_ratio(true_N, of_N, resamples, seed=0)

    def _of_hashtag(self, curves: Curves, v: int) -> dict[str, Any]:
        place = int(curves.places(OF_HASHTAGS)[v])
        row = {
            "tag": self.bundle.hashtags[v],
            "positives": int(curves.positives_V[v]),
            "curve": [(round(recall, 4), round(precision, 4)) for recall, precision in curves.recall_and_precision(v)],
        }
        if place >= 0:
            row |= {
                "threshold": round(float(curves.threshold_C[place]), 4),
                "validation": [int(curves.true_C[place]), int(curves.above_C[place])],
                "test": [int(self.true_V[v]), int(self.above_V[v])],
            }
        return row
