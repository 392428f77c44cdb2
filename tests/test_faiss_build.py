"""Which FAISS is installed: builds that exclude each other, one that is broken, and none, which a run tells at once."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.command import write
from helpers.with_controls import small_study
from moe_core.clustering import faiss_build
from moe_core.errors import MissingLibrary
from pipelines.cli.main import main


def install(folder, name, number, top_level=False):
    """Metadata of a distribution that installs the package faiss, as pip or conda leaves it."""
    there = folder / f"{name.replace('-', '_')}-{number}.dist-info"
    there.mkdir(parents=True)
    (there / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
    if top_level:
        (there / "top_level.txt").write_text("faiss\n")
    else:
        (there / "RECORD").write_text("faiss/__init__.py,sha256=x,1\nfaiss/loader.py,sha256=x,1\n")


def test_one_build_is_no_problem():
    assert faiss_build.check() == faiss_build.conflict() == ""
    (build,) = faiss_build.installed()
    name, number = build.split()
    assert (name in ("faiss-cpu", "faiss-gpu"), number) == (True, version(name))
    assert faiss_build.describe().startswith(f"{build}, for {'the CPU' if name == 'faiss-cpu' else 'GPUs'}")


def test_torch_is_loaded_first():
    code = "from moe_core.clustering.neighbors import import_faiss; import_faiss(); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert loaded.index("torch") < loaded.index("faiss")


@pytest.mark.parametrize("other", ["faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cuvs", "faiss-cuda"])
def test_two_builds_in_one_folder_are_named_with_the_mend(tmp_path, monkeypatch, other):
    install(tmp_path, "faiss-cpu", "1.15.1")
    install(tmp_path, other, "1.14.0")
    monkeypatch.syspath_prepend(tmp_path)
    assert faiss_build.check() == (
        f"faiss-cpu 1.15.1 and {other} 1.14.0 are installed together, with files of the same names, and what runs is a "
        f"mixture of them: pip uninstall -y faiss-cpu {other} && pip install -e '.[cpu]' in the folder of hardmoe's "
        "source"
    )


def test_condas_faiss_is_another_build(tmp_path, monkeypatch):
    install(tmp_path, "faiss", "1.9.0", top_level=True)
    install(tmp_path, "faiss-cpu", "1.15.1")
    monkeypatch.syspath_prepend(tmp_path)
    assert faiss_build.installed() == ("faiss 1.9.0", "faiss-cpu 1.15.1")


def test_a_build_in_another_folder_is_not_mixed_in(tmp_path, monkeypatch):
    """As in a virtual environment that sees the system's packages."""
    install(tmp_path, "faiss-gpu", "1.15.1")
    monkeypatch.syspath_prepend(tmp_path)
    assert faiss_build.installed() == ("faiss-gpu 1.15.1",)
    assert faiss_build.conflict() == ""


def test_a_library_about_faiss_is_no_build_of_it(tmp_path, monkeypatch):
    before = faiss_build.installed()
    there = tmp_path / "autofaiss-2.18.0.dist-info"
    there.mkdir()
    (there / "METADATA").write_text("Metadata-Version: 2.1\nName: autofaiss\nVersion: 2.18.0\n")
    (there / "RECORD").write_text("autofaiss/__init__.py,sha256=x,1\nautofaiss/faiss/__init__.py,sha256=x,1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert faiss_build.installed() == before


def test_a_faiss_without_metadata_is_named_by_its_version(monkeypatch):
    number = faiss_build.installed()[0].split()[1]
    monkeypatch.setattr(faiss_build, "installed", lambda: ())
    assert faiss_build.describe().startswith(f"faiss {number}, for ")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise ImportError('libfaiss.so: cannot open shared object file')", "libfaiss.so: cannot open"),
        ("raise RuntimeError('nvidia-cublas-cu12 is missing')", "nvidia-cublas-cu12 is missing"),
        ("", "has no attribute 'IndexFlatIP'"),
    ],
)
def test_a_broken_faiss_is_named_by_doctor_with_the_mend(tmp_path, code, why):
    (tmp_path / "faiss").mkdir()
    (tmp_path / "faiss/__init__.py").write_text(code)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pipelines.cli.main", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 10
    assert "FAISS is wanted, and faiss-" in done.stderr
    assert why in done.stderr
    assert "pip install -e '.[cpu]'" in done.stderr


@pytest.mark.parametrize("left", ["nothing", "a folder"])
def test_where_there_is_none_a_command_ends_before_it_starts_anything(tmp_path, monkeypatch, left):
    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    for entry in ("nothing", "a folder"):
        (tmp_path / entry).mkdir()
    (tmp_path / "a folder/faiss").mkdir()
    ours = [path for path in sys.path if not os.path.exists(os.path.join(path, "faiss"))]
    monkeypatch.setattr(sys, "path", [str(tmp_path / left), *ours])
    with pytest.raises(MissingLibrary, match=r"^FAISS is wanted, and there is none: "):
        faiss_build.check()


def test_hardmoe_run_without_faiss_ends_before_it_starts_anything(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    file = write(tmp_path / "cats", small_study())
    done = CliRunner().invoke(main, ["run", "--study", str(file)])
    assert done.exit_code == 1
    assert done.output.startswith("Error: FAISS is wanted, and the files of faiss-")
    assert [path.name for path in file.parent.iterdir()] == ["study.toml"]


WITHOUT_FAISS = """
import json, sys
sys.modules["faiss"] = None
import dagster as dg
from assets.materialize import definition
from assets.study import shards
from pipelines.definitions import defs

def errors(done):
    return [e.step_failure_data.user_failure_data.description for e in done.all_events if e.is_step_failure]

with dg.DagsterInstance.ephemeral() as instance:
    instance.add_dynamic_partitions(shards().name, ["s0000"])
    posts = dg.materialize([definition("posts")], instance=instance, partition_key="s0000", raise_on_error=False)
    job = defs.resolve_job_def("everything").execute_in_process(instance=instance, raise_on_error=False)
    print("\\n" + json.dumps([errors(posts), errors(job)]))
"""


def test_runs_of_the_ui_without_faiss_fail_at_the_first_asset_and_request_nothing(tmp_path):
    file = write(tmp_path / "cats", small_study())
    environment = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME"} | {"HARDMOE_STUDY": str(file)}
    command = [sys.executable, "-c", WITHOUT_FAISS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for errors in json.loads(done.stdout.splitlines()[-1]):
        assert len(errors) == 1
        assert errors[0].startswith("FAISS is wanted, and the files of faiss-")


@pytest.fixture
def checkout(tmp_path):
    """A folder for `make setup`, whose packages were installed just now: all but the stamp of a build."""
    if not shutil.which("make"):
        pytest.skip("there is no make")
    for name in ("pyproject.toml", "constraints.txt", "Makefile"):
        shutil.copy(Path(__file__).parents[1] / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    return tmp_path


def steps(folder, *arguments):
    """What `make setup` would do."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k != "FAISS"}
    command = ["make", "--dry-run", "setup", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=True)
    return done.stdout.splitlines()


def test_make_setup_takes_one_build_away_before_it_installs_another(checkout):
    (checkout / ".venv/.ready-cpu").touch()
    assert not any("pip" in step for step in steps(checkout))
    done = steps(checkout, "FAISS=gpu")
    gone = next(n for n, step in enumerate(done) if step.endswith("faiss-cpu faiss-gpu"))
    come = next(n for n, step in enumerate(done) if step.endswith("-e '.[gpu,dev]'"))
    assert gone < come
    assert done.index("rm -f .venv/.ready*") < gone, "the next setup of the other build finds its stamp gone"
    assert done[-1] == "touch .venv/.ready-gpu"


def test_make_stays_with_the_build_that_was_set_up(checkout):
    assert steps(checkout)[-1] == "touch .venv/.ready-cpu"
    (checkout / ".venv/.ready-gpu").touch()
    assert not any("pip" in step for step in steps(checkout))
    os.utime(checkout / ".venv/.ready-gpu", (0, 0))  # older than pyproject.toml
    assert steps(checkout)[-1] == "touch .venv/.ready-gpu"
