"""A plugin for pytest, `-p only_torch`: of what is installed, only what a bare GPU machine has can be imported."""

import sys
from importlib.machinery import PathFinder

NEEDED = {"torch", "numpy", "PIL", "pytest", "safetensors", "pydantic"}
# of these, and what pip brings with them
THEIRS = {
    "_pytest",
    "annotated_types",
    "iniconfig",
    "jinja2",
    "markupsafe",
    "mpmath",
    "networkx",
    "packaging",
    "pluggy",
    "pydantic_core",
    "pygments",
    "sympy",
    "torchgen",
    "typing_extensions",
    "typing_inspection",
}
OURS = {"moe_core", "helpers", "conftest", "only_torch"}


class OnlyThese(PathFinder):
    """Finds what is Python's, needed, or ours."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        top = fullname.partition(".")[0]
        known = top in NEEDED | THEIRS | OURS or top in sys.stdlib_module_names or top.startswith(("test_", "_"))
        return super().find_spec(fullname, path, target) if known else None


sys.meta_path[:] = [OnlyThese if finder is PathFinder else finder for finder in sys.meta_path]
