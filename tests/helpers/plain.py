"""The whole graph of a study in a process of its own, without Dagster: torch's threads are set once a process."""

import subprocess
import sys

CODE = """
import sys
from pathlib import Path
from moe_core.settings import load_study
from moe_core.workspace import open_study
from moe_core.engine.build import build
file = Path(sys.argv[1])
context = open_study(load_study(file), file.parent)
for name in context.planner.graph:
    for key in context.planner.keys(name):
        build(context, name, key)
"""


def make_everything(study_file):
    subprocess.run([sys.executable, "-c", CODE, str(study_file)], check=True)
