"""Splits by the names of files and folders, as train-00000-of-00002.parquet, val/part-0.tar, captions_test2017.json."""

import re

from moe_core.data.sources.files import WILDCARD, is_remote, local
from moe_core.data.sources.registry import FORMATS

SPLITS = dict.fromkeys(("train", "training"), "train")
SPLITS |= dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")
SPLITS |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
SUFFIXES = sorted({suffix for format in FORMATS.values() for suffix in format.suffixes}, key=len, reverse=True)


def split_of_word(word: str) -> str | None:
    """The split that a word names, perhaps followed by a year."""
    return SPLITS.get(re.sub(r"\d+$", "", word.lower()))


def split_of_path(path: str, uri: str) -> str | None:
    """By the first or last word of the file's name, else by a folder's name, from the inside out.

    Only what source.uri leaves open counts: nothing of a single file, and of a glob what its wildcards stand for.
    """
    root = uri if is_remote(uri) else str(local(uri))
    if wild := WILDCARD.search(root):
        root = root[: wild.start()]
    *folders, name = path.removeprefix(root).lstrip("/").split("/")
    stem = name.lower().removesuffix(next(suffix for suffix in SUFFIXES if name.lower().endswith(suffix)))
    words = [word for word in re.split(r"[-_. ]+", stem) if word and not word.isdigit()]
    words = [word for word in words if word != "of"]
    ends = [split_of_word(word) for word in (*words[:1], *words[-1:])]
    return next((split for split in (*ends, *map(split_of_word, reversed(folders))) if split), None)
