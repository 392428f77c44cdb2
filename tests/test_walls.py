"""What may import what, seen in fresh processes."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.imports import MODULES, PACKAGES
from moe_core.data.sources.registry import FORMATS


def loaded_by(module):
    code = f"import sys, {module}; print(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_definitions_load_neither_torch_nor_faiss():
    assert not loaded_by("pipelines.definitions") & {"torch", "faiss", "lance", "polars", "PIL"}


def test_readers_of_sources_load_nothing_heavy_since_every_plan_loads_one():
    readers = [f"moe_core.data.sources.{row.module or row.name}" for row in FORMATS.values() if row.name != "lance"]
    assert not loaded_by(", ".join(readers)) & {"torch", "lance", "polars", "PIL"}


@pytest.mark.parametrize("module", ["moe_core.stages.graph", "moe_core.recipes", "moe_core.serving.bundle"])
def test_the_core_knows_no_dagster(module):
    assert not loaded_by(module) & {"dagster", "assets", "pipelines"}


@pytest.mark.parametrize(
    "module",
    [
        "moe_core.models.resnet",
        "moe_core.models.cost",
        "moe_core.training.loop",
        "moe_core.training.infer",
        "moe_core.training.last_layer",
        "moe_core.clustering.gate",
        "moe_core.clustering.kmeans",
        "moe_core.clustering.balance",
        "moe_core.clustering.neighbors",
    ],
)
def test_models_training_and_clustering_run_where_only_torch_is(module):
    found = loaded_by(module)
    assert "torch" in found or "clustering" in module
    assert not found & {"lance", "polars", "dagster", "faiss", "pydantic", "safetensors", "PIL"}


@pytest.mark.parametrize("package", ["moe_core", "assets", "pipelines"])
def test_polars_reads_no_path_as_a_pattern(package):
    """It would take the [1] of a folder's name for one."""
    for file in (Path(__file__).parents[1] / package).rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call)):
            name = getattr(call.func, "attr", "")
            if name.startswith(("read_", "scan_")) and getattr(call.func.value, "id", "") == "pl":
                assert any(keyword.arg == "glob" for keyword in call.keywords), f"{file}:{call.lineno}"


def test_commands_write_by_the_functions_that_escape_names():
    folder = Path(__file__).parents[1] / "pipelines"
    for file in set(folder.rglob("*.py")) - {folder / "terminal.py"}:
        for call in (node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call)):
            written = ast.unparse(call.func)
            assert written not in ("click.echo", "click.secho", "print"), f"{file}:{call.lineno}: see terminal.py"


TESTS = Path(__file__).parent
LONGEST_TEST_FILE = 400  # lines


def test_no_test_file_is_long():
    lines = {file.name: len(file.read_text("utf-8").splitlines()) for file in TESTS.glob("test_*.py")}
    assert len(lines) > 50
    assert {name: count for name, count in lines.items() if count > LONGEST_TEST_FILE} == {}, "split it by subject"


def test_no_test_imports_a_test():
    """What several tests share lies in tests/helpers; programs that tests start from a string count, too."""
    imports = re.compile(r"^\s*(?:from|import)\s+test_\w+", re.MULTILINE)
    files = list(TESTS.rglob("*.py"))
    assert len(files) > 50
    assert {file.name: found for file in files if (found := imports.findall(file.read_text("utf-8")))} == {}


def private_names():
    """Names with one leading underscore that our packages define: functions, classes, variables, fields."""
    names = set()
    for node in (node for path in MODULES.values() for node in ast.walk(ast.parse(path.read_text("utf-8")))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return {name for name in names if re.fullmatch(r"_[a-z]\w*", name, re.IGNORECASE)}


NO_NAMES = ast.Dict | ast.JoinedStr  # keys of a record, parts of a text


def private_names_used(tree, private):
    """Where a test reaches one of them: by import, as an attribute, or as text, also in a program that it starts."""
    data = [n.keys if isinstance(n, ast.Dict) else n.values for n in ast.walk(tree) if isinstance(n, NO_NAMES)]
    skipped = {part for parts in data for part in parts}
    for node in (node for node in ast.walk(tree) if node not in skipped):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            used = {alias.name for alias in node.names} & private
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) != "self":
            used = {node.attr} & private
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used = set(re.findall(r"(?:\.|^|import )(_\w+)", node.value)) & private
        else:
            continue
        yield from (f"line {node.lineno}: {name}" for name in used)


def test_no_test_reaches_a_private_name_of_ours():
    private = private_names()
    assert {"_join", "_held"} <= private
    trees = {file: ast.parse(file.read_text("utf-8")) for file in TESTS.rglob("*.py") if file != Path(__file__)}
    found = {file.name: used for file, tree in trees.items() if (used := [*private_names_used(tree, private)])}
    assert found == {}, "test it by what is public, or make it public"


@pytest.mark.parametrize(
    "line",
    [
        "from moe_core.data.x import _inner",
        "x._inner()",
        "monkeypatch.setattr(x, '_inner', 1)",
        "monkeypatch.setattr('moe_core.x._inner', 1)",
        "HOOK = 'from moe_core.x import _inner'",
    ],
)
def test_a_private_name_that_a_test_reaches_is_seen(line):
    assert [*private_names_used(ast.parse(line), {"_inner"})] == ["line 1: _inner"]
