"""Builds the splits of a study and dies at the n-th write of a sorted file: python killed_splits.py STUDY N."""

import os
import signal
import sys
from pathlib import Path

from moe_core import sorting
from moe_core.engine.build import build
from moe_core.stages.data import splits
from moe_core.study_file import load_study
from moe_core.workspace import open_study

_append = sorting.RowFile.append
left = int(sys.argv[2])


def _dying(file, rows):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    _append(file, rows)


sorting.RowFile.append = _dying
splits.MEMORY = 1
study = Path(sys.argv[1])
build(open_study(load_study(study), study.parent / "store"), "splits")
