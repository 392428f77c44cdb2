"""Hashtags in texts that people write below a picture. Polars is loaded where there are any: readers start fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

_TAG_CHARACTER = r"[\p{L}\p{M}\p{N}_\p{So}\x{1F3FB}-\x{1F3FF}\x{200C}\x{200D}\x{B7}\x{30FB}]"
# "C#", "page#part", "/#part" and "&#39;" are no hashtags; "#a#b" are two.
_HASHTAGS = rf"(?:^|[^\p{{L}}\p{{M}}\p{{N}}_&/#＃])(?:[#＃]+{_TAG_CHARACTER}+)+"


def hashtags_in(captions: Sequence[str | None]) -> list[list[str]]:
    """The '#words' of each text; what is no Unicode in it is read as '?'."""
    import polars as pl

    texts = [text.encode("utf-8", "replace").decode() if text else None for text in captions]
    return pl.select(hashtags_of_text(pl.lit(pl.Series(texts, dtype=pl.String)))).to_series().to_list()


def hashtags_of_text(column: pl.Expr) -> pl.Expr:
    """The '#words' of each text in their order, as written but for the '#'; [] where there is none."""
    import polars as pl

    chains = column.str.extract_all(_HASHTAGS).list.join(" ")
    hashtags = chains.str.extract_all(rf"[#＃]{_TAG_CHARACTER}+").list.eval(pl.element().str.strip_chars_start("#＃"))
    return hashtags.fill_null([])
