"""The user's lists of words: tags that never count, tags that mean another, and English plurals."""

from collections.abc import Container, Mapping
from pathlib import Path

import polars as pl

from moe_core.data.tags import Accents, canonical
from moe_core.errors import BadSetting

PLURAL = r"^[a-z]{4,}$"  # a tag that may be plural: not "gas" nor "猫s"
NEVER = r"(ss|us|is)$"  # "glass", "bus", "tennis"
ENDINGS = ((r"s$", ""), (r"(s|x|z|ch|sh)es$", "${1}"), (r"ies$", "y"))  # the first singular that exists is meant


def read_stop_tags(path: str, accents: Accents) -> pl.Series:
    """Canonical tags, one a line of the file; none without a file."""
    lines = pl.Series("line", [line for _, line in _lines(path, "data.stop_tags")], pl.String)
    return _canonical(lines, accents).drop_nulls().unique()


def read_synonyms(path: str, accents: Accents) -> dict[str, str]:
    """From a file of lines 'written = meant', chains followed to their end: canonical tag -> the tag that is meant.

    A line by which a tag means itself keeps it from being taken for a plural. Raises BadSetting, with the
    number of the line, for a line without a tag on both sides, for a second meaning, and for a circle.
    """
    lines = _lines(path, "data.synonyms")
    parts = [line.partition("=") for _, line in lines]
    left = _canonical(pl.Series([written for written, _, _ in parts], dtype=pl.String), accents)
    right = _canonical(pl.Series([meant for _, _, meant in parts], dtype=pl.String), accents)
    meanings: dict[str, str] = {}
    for (number, line), written, meant in zip(lines, left, right, strict=True):
        where = f"{path}, line {number}"
        if not written or not meant:
            raise BadSetting(f"{where}: {line!r} is not 'written = meant' with a tag on both sides")
        if meanings.get(written, meant) != meant:
            raise BadSetting(
                f"{where}: {line!r}, but an earlier line has {written} = {meanings[written]}: keep one of them"
            )
        if written != meant and (circle := _path(meanings, meant))[-1] == written:
            raise BadSetting(f"{where}: {line!r} closes a circle: {' = '.join([written, *circle])}: remove one line")
        meanings[written] = meant
    return resolved(meanings)


def resolved(meant: Mapping[str, str]) -> dict[str, str]:
    """Each chain a -> b -> c followed to its end. There is no circle but a -> a."""
    return {written: _path(meant, written)[-1] for written in meant}


def plurals(tags: pl.Series, frequent: pl.Series, settled: Container[str]) -> dict[str, str]:
    """plural -> singular among `tags`, for singulars that are in `frequent`; tags in `settled` stay what they are.

    A singular must be frequent: else one typing error "pari" would swallow every "paris".
    """
    tag, is_frequent = pl.col("tag"), frequent.implode()
    singular = pl.coalesce(
        *(
            pl.when(tag.str.contains(ending) & tag.str.replace(ending, rest).is_in(is_frequent)).then(
                tag.str.replace(ending, rest)
            )
            for ending, rest in ENDINGS
        )
    )
    table = tags.to_frame("tag").filter(tag.str.contains(PLURAL), ~tag.str.contains(NEVER))
    pairs = table.select("tag", singular.alias("singular")).drop_nulls().sort("tag")
    return {plural: singular for plural, singular in pairs.iter_rows() if plural not in settled}


def _path(meant: Mapping[str, str], tag: str) -> list[str]:
    path = [tag]
    while (following := meant.get(path[-1], path[-1])) != path[-1]:
        path.append(following)
    return path


def _canonical(lines: pl.Series, accents: Accents) -> pl.Series:
    return lines.to_frame("line").select(canonical(pl.col("line"), accents)).to_series()


def _lines(path: str, setting: str) -> list[tuple[int, str]]:
    """(number, line) of the lines that are not blank."""
    if not path:
        return []
    if not Path(path).is_file():
        raise BadSetting(f"no file at {path}: wanted a text file ({setting})")
    try:
        text = Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSetting(f"{path} is not UTF-8 text ({setting}): {error}") from None
    return [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
