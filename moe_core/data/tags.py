"""Canonical hashtags: one spelling for each tag, whatever was written.

"New York", "#new-york" and "newyork" are one tag. Letters, digits and combining marks of every script stay, emoji stay
without their modifiers, everything else goes. Machine tags (`ns:pred=value`) are no hashtags.
"""

import re
import unicodedata

import polars as pl

MAX_TAG_CHARACTERS = 100  # longer is never a word; Instagram's own limit on a hashtag is of this size

_MACHINE_TAG = re.compile(r"^\s*#?[A-Za-z]\w*:[A-Za-z]\w*=", re.ASCII)
_EMOJI_MODIFIERS = {"︎", "️", "‍", *map(chr, range(0x1F3FB, 0x1F400))}


def canonical_tag(written: str) -> str | None:
    """The canonical form of one tag, or None where nothing is left of it. Idempotent."""
    if _MACHINE_TAG.match(written):
        return None
    # Each of the three steps can undo another (casefold makes U+0345 anew, a dropped character lets two marks meet and
    # change their order), so they are applied until nothing moves; in practice that is twice.
    text, before = written, ""
    while text != before:
        before = text
        text = "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if _stays(c))
    return text if 0 < len(text) <= MAX_TAG_CHARACTERS else None


def canonical_tags(written: list[str]) -> list[str]:
    """Canonical forms in the order of first appearance, each once."""
    return list(dict.fromkeys(tag for text in written if (tag := canonical_tag(text)) is not None))


def canonical_lists(written: pl.Series, accents: str = "keep") -> pl.Series:
    """`canonical_tags` of each list; empty where there is none."""
    lists = [canonical_tags([tag for tag in row or () if tag is not None]) for row in written.to_list()]
    return pl.Series(written.name, lists, dtype=pl.List(pl.String))


def _stays(character: str) -> bool:
    kind = unicodedata.category(character)
    return (kind[0] in "LMN" or kind == "So") and character not in _EMOJI_MODIFIERS
