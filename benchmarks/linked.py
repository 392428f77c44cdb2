"""Studies that share what lies upstream: artifacts are never changed, so a hard link is a copy that costs nothing."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

INGESTED = ("posts", "posts.lance", "rejects.lance")
LABELLED = (*INGESTED, "splits", "vocabulary")  # all before the first network


def link(source: Path, root: Path, names: Iterable[str]) -> None:
    """Assets and tables of one study for another on the same disk, those that it has not yet; each whole or not at all.

    Raises FileNotFoundError for one that the source has not.
    """
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (root / name).exists():
            continue
        part = root / f".linking-{name}"
        shutil.rmtree(part, ignore_errors=True)
        unfinished = shutil.ignore_patterns(".part-*", ".lock-*", ".work-*")
        shutil.copytree(source / name, part, copy_function=os.link, ignore=unfinished)
        part.rename(root / name)
