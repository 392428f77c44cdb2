"""The `hardmoe` command of a checkout that is not installed: python benchmarks/gpu/hardmoe.py COMMAND ..."""

import importlib
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Runs the function that pyproject.toml names as the command."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    module, _, function = project["scripts"]["hardmoe"].partition(":")
    sys.path[0] = str(ROOT)  # in place of this folder
    sys.argv[0] = "hardmoe"
    getattr(importlib.import_module(module), function)()


if __name__ == "__main__":
    main()
