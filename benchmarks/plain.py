"""A study's graph by a plain script, without Dagster: all stages, or those named, in order.

Example: python benchmarks/plain.py cats/study.toml posts splits
"""

import subprocess
import sys
from pathlib import Path

from moe_core.engine.build import build_all
from moe_core.study_file import load_study
from moe_core.workspace import open_study

TO_THE_PARTITION = ("posts", "splits", "vocabulary", "trunk", "trunk_features", "partition")


def command(study_file: Path, *names: str) -> list[str]:
    """For a process of its own: torch's threads are set once a process."""
    return [sys.executable, __file__, str(study_file), *names]


def make(study_file: Path, *names: str) -> None:
    """Builds the stages in a process of their own."""
    subprocess.run(command(study_file, *names), check=True)


if __name__ == "__main__":
    file = Path(sys.argv[1])
    build_all(open_study(load_study(file), file.parent), sys.argv[2:] or None)
