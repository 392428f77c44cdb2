"""Studies that share what lies upstream: artifacts are never changed, so a hard link is a copy that costs nothing."""

import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from moe_core.engine.build import build
from moe_core.engine.context import Context
from moe_core.settings import Study
from moe_core.store.files import temporary_folder, write_text
from moe_core.study_file import dump_study
from moe_core.workspace import open_study

INGESTED = ("posts", "posts.lance", "rejects.lance")
LABELLED = (*INGESTED, "splits", "vocabulary")  # all before the first network


def link(source: Path, root: Path, names: Iterable[str]) -> None:
    """Assets and tables of one study for another on the same disk, those that it has not yet; each whole or not at all.
    Several processes may link the same at once.

    Raises FileNotFoundError for one that the source has not.
    """
    for name in names:
        if (root / name).exists():
            continue
        with temporary_folder(root) as part:
            unfinished = shutil.ignore_patterns(".part-*", ".lock-*", ".work-*")
            shutil.copytree(source / name, part / name, copy_function=os.link, ignore=unfinished)
            try:
                (part / name).rename(root / name)
            except OSError:
                if not (root / name).exists():  # else another process was first
                    raise


def make(study: Study, root: Path, names: Sequence[str], until: float = float("inf")) -> Context:
    """The study open at `root`, with these assets made; what is there already is not made again.

    Raises SystemExit where the next is to be made after `until`, by the monotonic clock.
    """
    context = open_study(study, root)
    root.mkdir(parents=True, exist_ok=True)
    write_text(root / "study.toml", dump_study(study))
    for name in names:
        for key in context.planner.keys(name):
            if time.monotonic() > until:
                raise SystemExit(f"stopped before {name} {key or ''} of {root}: the same command goes on there")
            built = build(context, name, key)
            if not built.reused:
                print(f"{time.strftime('%H:%M:%S')}  {root.name}  {name} {key or ''}", flush=True)
    return context
