"""Canonical hashtags: one spelling for each tag, whatever was written.

"New York", "#new-york" and "newyork" are one tag. Letters, digits and combining marks of every script stay, emoji stay
without what modifies them, everything else goes. Machine tags (`ns:pred=value`) are no hashtags. All of it is polars
expressions; `canonical_lists` makes one pass over the distinct spellings of a column of posts, not over its tags.
"""

from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa

MAX_TAG_CHARACTERS = 100  # longer is never a word; Instagram's own limit on a hashtag is of this size

Accents = Literal["keep", "fold"]

# Invisible: joiners, variation selectors, soft hyphens, fillers, and the letters of subdivision flags. They go first:
# a mark that follows one belongs to the letter before it.
_INVISIBLE = r"\p{Default_Ignorable_Code_Point}+"
# Accents of Latin, Greek and Cyrillic, decomposed. Vowel signs of Indic scripts, Arabic and Hebrew points, Japanese
# voicing marks and the ring of keycap emoji lie elsewhere and are never dropped: without them it is another word.
# U+0345 is left out: it is the letter iota, and upper case writes it as one.
_ACCENTS = r"[\x{300}-\x{344}\x{346}-\x{36F}\x{483}-\x{487}\x{1AB0}-\x{1AFF}\x{1DC0}-\x{1DFF}\x{FE20}-\x{FE2F}]+"
_SPACES = r"[\s#]*"
_WORD = r"[a-z][0-9a-z_\s#]*"
_MACHINE_TAG = rf"(?s)^{_SPACES}{_WORD}:{_SPACES}{_WORD}=.*"
# What goes, with the marks that sit on it (the accent of a lone "´" must not land on the letter before it).
# U+FFFC and U+FFFD stand for what was lost.
_NO_TAG = r"[^\p{L}\p{M}\p{N}[\p{So}--[\x{FFFC}\x{FFFD}]]]+\p{M}*|^\p{M}+"
_NOT_EMPTY = rf"(?s)^(.{{1,{MAX_TAG_CHARACTERS}}})$"

# Characters that full case folding maps elsewhere than lower case does, after NFKD: sharp s, final sigma, the iota
# subscript, old Cyrillic letter forms, and Cherokee, whose folded form is its upper case.
_FOLDED = {"ß": "ss", "ς": "σ", "\u0345": "ι"}
_FOLDED |= dict(zip("ᲀᲁᲂᲃᲄᲅᲆᲇᲈ", "вдосттъѣꙋ", strict=True))
_FOLDED |= {chr(0xAB70 + n): chr(0x13A0 + n) for n in range(80)} | {chr(0x13F8 + n): chr(0x13F0 + n) for n in range(6)}


def canonical(column: pl.Expr, accents: Accents = "keep") -> pl.Expr:
    """The canonical form of each tag, null where nothing is left of it. Idempotent.

    Decomposed (NFKD), case folded, stripped, composed again: the order in which no step undoes another.
    `accents` "fold" drops the accents of Latin, Greek and Cyrillic letters: "café" and "cafe" are one tag.
    """
    text = column.str.replace_all(_INVISIBLE, "").str.normalize("NFKD")
    if accents == "fold":
        text = text.str.replace_all(_ACCENTS, "")
    text = text.str.to_lowercase().str.replace_many(_FOLDED).str.replace_all(_MACHINE_TAG, "")
    # one chain: an expression that is named twice is computed twice
    return text.str.replace_all(_NO_TAG, "").str.normalize("NFC").str.extract(_NOT_EMPTY)


def canonical_lists(written: pl.Series, accents: Accents = "keep") -> pl.Series:
    """The canonical forms of each post's tags, each once, in the order of first appearance; [] where there is none."""
    written = written.cast(pl.List(pl.String))
    spellings = Spellings()
    starts_N1, flat = flattened(written)
    codes = spellings.codes(flat)
    form_of_code = spellings.words().to_frame("tag").select(canonical(pl.col("tag"), accents)).to_series()
    forms = as_lists(starts_N1, form_of_code.gather(codes))
    return forms.list.drop_nulls().list.unique(maintain_order=True).rename(written.name)


def flattened(lists: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """(starts_N1, values): value t belongs to the row n with starts_N1[n] <= t < starts_N1[n + 1]; null is empty."""
    lengths_N = lists.list.len().fill_null(0).to_numpy()
    starts_N1 = np.concatenate([[0], lengths_N.cumsum(dtype=np.int64)])
    return starts_N1, lists.explode(empty_as_null=False, keep_nulls=False)


def as_lists(starts_N1: np.ndarray, values: pl.Series) -> pl.Series:
    """The inverse of `flattened`."""
    arrow = values.to_arrow(compat_level=pl.CompatLevel.newest())  # strings as views, without a copy
    return pl.Series(pa.LargeListArray.from_arrays(pa.array(starts_N1, pa.int64()), arrow))


class Spellings:
    """Strings and a code for each: 0, 1, ... in the order of first appearance. A code stays what it is."""

    def __init__(self) -> None:
        self._kind = pl.Categorical(pl.Categories.random())
        self._held = pl.Series([], dtype=self._kind)  # polars forgets the codes with the last column of the kind
        self._count = 0

    def codes(self, strings: pl.Series) -> pl.Series:
        """The code of each string, null for null; strings not seen before get new ones."""
        codes = strings.cast(self._kind).to_physical()
        highest = codes.max()
        if highest is not None:
            assert isinstance(highest, int)
            self._count = max(self._count, highest + 1)
        return codes

    def words(self, first: int = 0) -> pl.Series:
        """The strings with codes from `first` on."""
        codes = pl.int_range(first, self._count, dtype=pl.UInt32, eager=True)
        return codes.cat.to(self._kind).cast(pl.String)
