"""All imports of the project among its own modules, read from the source: those inside functions and for types, too."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("moe_core", "assets", "pipelines")


def _name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


@dataclass(frozen=True)
class Import:
    """`importer` imports `imported` in a line, inside a function or not."""

    importer: str
    imported: str
    line: int
    in_function: bool


def imports_of(module: str, text: str) -> Iterator[Import]:
    """What a module with this text imports of the project's own modules."""

    def visit(node, inside):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom) and child.module:
                full = [f"{child.module}.{alias.name}" for alias in child.names]
                names = [name if name in MODULES else child.module for name in full]
            else:
                yield from visit(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))
                continue
            for name in dict.fromkeys(names):
                if name in MODULES and name != module:
                    yield Import(module, name, child.lineno, inside)

    yield from visit(ast.parse(text), False)


@cache
def all_imports() -> list[Import]:
    return [found for module, path in MODULES.items() for found in imports_of(module, path.read_text("utf-8"))]


def circles() -> list[list[str]]:
    """Groups of modules that import one another, by strong components of the graph (Tarjan)."""
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in all_imports():
        graph[found.importer].add(found.imported)
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            at = stack.index(node)
            groups.append(sorted(stack[at:]))
            del stack[at:]

    for module in graph:
        if module not in index:
            visit(module)
    return [group for group in groups if len(group) > 1]
