"""Commands that only look, on a study whose source cannot be read for the moment."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.two_mixtures import GOOD, write
from moe_core.engine.build import build
from moe_core.settings import Source
from moe_core.workspace import open_study
from pipelines.cli.main import main

WARNING = "The source cannot be read now, so this is as it was last built: "


@pytest.fixture
def root(both, tmp_path, monkeypatch):
    """With a report, and without a source."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("HARDMOE_STUDY", "")
    root = shutil.copytree(both, tmp_path / "store")
    for name in ("published", "report"):
        build(open_study(GOOD, root), name)
    (root / "posts.parquet").touch()
    write(root, GOOD.model_copy(update={"source": Source(format="parquet", uri=str(root / "posts.parquet"))}))
    return root


def hardmoe(root, *arguments):
    return CliRunner().invoke(main, [*arguments, "--study", str(root / "study.toml")])


def test_results_report_and_lineage_go_by_what_was_made_last(root):
    context = open_study(GOOD, root)
    done = hardmoe(root, "results", "--json")
    assert done.stderr.startswith(WARNING)
    assert "posts.parquet" in done.stderr
    said = json.loads(done.stdout)["publication"]
    assert (said["mixture"], said["is_published"]) == (context.version("mixture"), True)
    assert "mixture_top1" in hardmoe(root, "results").stdout
    assert Path(hardmoe(root, "report").stdout.strip()) == context.need("report").file("report.html")
    for name in ("mixture", "expert:e001"):
        done = hardmoe(root, "lineage", name, "--json")
        asset, _, key = name.partition(":")
        there = {artifact.version for artifact in context.store.versions(asset, key or None)}
        assert json.loads(done.stdout)["requested"]["version"] in there
        assert done.stderr.startswith(WARNING)


def test_what_was_never_made_is_said(root):
    shutil.rmtree(root / "report")
    done = hardmoe(root, "report")
    assert done.stderr.startswith("Error: the source cannot be read, and the store has no report yet: ")
    assert done.exit_code == 1


def test_the_ui_starts_and_dagster_keeps_its_keys(root, monkeypatch):
    started = []
    monkeypatch.setattr("pipelines.cli.inspect.run_together", lambda *commands: started.append(commands) or 0)
    done = hardmoe(root, "ui", "--port", "0")
    assert (done.exit_code, len(started)) == (0, 1), done.output
    assert WARNING in done.stderr
    loading = [sys.executable, "-c", "import pipelines.definitions"]
    subprocess.run(
        loading, env={"HARDMOE_STUDY": str(root / "study.toml"), "PYTHONPATH": ":".join(sys.path)}, check=True
    )
