"""Every asset of a stage, by the stage's name: each file here declares some."""

from assets import controls, experts, mixture, partition, posts, results, splits, trunk, vocabulary
from assets.materialize import ASSETS

__all__ = ["ASSETS", "controls", "experts", "mixture", "partition", "posts", "results", "splits", "trunk", "vocabulary"]
