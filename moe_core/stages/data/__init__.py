"""Stages that read the source: posts, splits, vocabulary."""
