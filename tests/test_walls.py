"""What may import what, seen in fresh processes."""

import subprocess
import sys

import pytest


def loaded_by(module):
    code = f"import sys, {module}; print(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_definitions_load_neither_torch_nor_faiss():
    assert not loaded_by("pipelines.definitions") & {"torch", "faiss", "lance", "polars", "PIL"}


@pytest.mark.parametrize("module", ["moe_core.stages.table", "moe_core.recipes", "moe_core.serving.bundle"])
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
        "moe_core.clustering.neighbours",
    ],
)
def test_models_training_and_clustering_run_where_only_torch_is(module):
    found = loaded_by(module)
    assert "torch" in found or "clustering" in module
    assert not found & {"lance", "polars", "dagster", "faiss", "pydantic", "safetensors", "PIL"}
