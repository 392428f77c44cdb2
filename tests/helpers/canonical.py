"""Canonical forms of single tags."""

from functools import lru_cache

import polars as pl

from moe_core.data.tags import canonical


@lru_cache(maxsize=100_000)
def canonical_tag(written, accents="keep"):
    """The canonical form of one tag, or None where nothing is left of it."""
    return pl.select(canonical(pl.lit(written, pl.String), accents)).item()


def canonical_tags(written, accents="keep"):
    """Canonical forms in the order of first appearance, each once."""
    return list(dict.fromkeys(tag for text in written if (tag := canonical_tag(text, accents)) is not None))
