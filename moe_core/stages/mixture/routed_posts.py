"""Posts of a split with what the trunk and the gate know of each: its features and its expert.

Letters: N posts, D embedding width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moe_core.engine.context import Context
from moe_core.stages import reading
from moe_core.training.batches import Posts


@dataclass(frozen=True)
class RoutedPosts:
    """N posts, their features by the trunk, and their experts by each partition."""

    posts: Posts
    features_ND: np.ndarray
    expert_N: np.ndarray
    random_N: np.ndarray  # by the random partition, the control

    def __len__(self) -> int:
        return len(self.posts)

    def expert_by(self, column: str) -> np.ndarray:
        """(N,) int64: the expert of each post by a column of the assignment, `expert` or `random`."""
        columns: Mapping[str, np.ndarray] = {"expert": self.expert_N, "random": self.random_N}
        return columns[column]

    def rows(self, rows_M: np.ndarray) -> "RoutedPosts":
        """The posts at these places; images are not read yet."""
        features_MD = self.features_ND[rows_M]
        return RoutedPosts(self.posts.subset(rows_M), features_MD, self.expert_N[rows_M], self.random_N[rows_M])


def read_routed_posts(context: Context, split: str) -> RoutedPosts:
    """Posts of a split that have a hashtag to predict and that no network was trained on; there may be none."""
    index = reading.index(context)
    use_N = reading.held_out(context, index, split)
    assignment = reading.assignment(context)
    return RoutedPosts(
        reading.posts_where(context, index, use_N),
        reading.trunk_features_where(context, use_N),
        assignment["expert"].to_numpy()[use_N],
        assignment["random"].to_numpy()[use_N],
    )
