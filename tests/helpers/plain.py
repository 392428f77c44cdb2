"""The graph of a study in a process of its own, without Dagster: torch's threads are set once a process."""

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "plain.py"


def plain_command(study_file, *names):
    """Builds all stages, or those named."""
    return [sys.executable, str(PROGRAM), str(study_file), *names]


def make_plainly(study_file, *names):
    subprocess.run(plain_command(study_file, *names), check=True)
