"""What may import what, seen in fresh processes."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest


def loaded_by(module):
    code = f"import sys, {module}; print(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_definitions_load_neither_torch_nor_faiss():
    assert not loaded_by("pipelines.definitions") & {"torch", "faiss", "lance", "polars", "PIL"}


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
        "moe_core.training.decoder",
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
