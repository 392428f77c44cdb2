"""Rows of a table by runs of adjacent ones: an array of int64 that is not in memory.

Letters: R runs, B places that are asked for.
"""

from collections.abc import Iterable

import numpy as np


class Runs:
    """Numbers that ascend by one in each run; places are counted through all runs."""

    def __init__(self, runs: Iterable[tuple[int, int]]) -> None:
        """Of (first number, how many) each."""
        first_R, count_R = np.array([run for run in runs if run[1]], np.int64).reshape(-1, 2).T
        self.end_R = count_R.cumsum()
        self.shift_R = first_R - (self.end_R - count_R)  # of a number from its place

    def __len__(self) -> int:
        return int(self.end_R[-1]) if len(self.end_R) else 0

    def __getitem__(self, places_B: np.ndarray) -> np.ndarray:
        """(B,) int64: the numbers at these places. Raises IndexError for a place behind the last."""
        found: np.ndarray = places_B + self.shift_R[np.searchsorted(self.end_R, places_B, side="right")]
        return found
