"""A user's mistake is one line; a bug shows its traceback and where to go with it."""

import errno
import os
import subprocess
import sys

import dagster as dg
import pytest
from click.testing import CliRunner

from helpers.command import write
from helpers.without_controls import quick_study
from moe_core.errors import BadSetting, HardmoeError
from pipelines.cli.errors import BUG
from pipelines.cli.main import COMMANDS, main
from pipelines.run.status import error_of


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.delenv("HARDMOE_TRACE", raising=False)
    monkeypatch.setenv("HARDMOE_STUDY", "")
    return write(tmp_path / "cats", quick_study())


def hardmoe(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


MISTAKES = {
    ("init", "CATS", "--source", "x.parquet"): "exists: edit it, or replace it with --force",
    ("run", "--json"): "--json goes with --dry-run",
    ("run", "--until", "experts"): "no asset 'experts' in this study: wanted one of posts",
    ("run", "--set", "nonsense"): "--set nonsense: wanted table.key=value",
    ("backfill",): "choose exactly one of --experts, --all, --missing, --stale, --failed",
    ("repartition", "--json"): "--json goes with --dry-run",
    ("lineage", "nonsense"): "no asset or row 'nonsense'",
    ("ui", "--allow-host", "a/b"): "--allow-host a/b: wanted a name",
    ("ui", "--path-prefix", "x"): "--path-prefix x: wanted one such as /hardmoe",
    ("predict", "--top", "0", "x.png"): "--top 0: wanted at least 1",
    ("publish", "--rollback", "--list"): "exclude one another: choose one",
    ("gc", "--apply", "--dry-run"): "--apply and --dry-run exclude each other: choose one",
    ("forget",): "nothing to take down",
}


@pytest.mark.parametrize(
    ("words", "message"), MISTAKES.items(), ids=lambda x: " ".join(x) if isinstance(x, tuple) else ""
)
def test_a_mistake_is_one_line(study, words, message):
    words = [str(study.parent) if word == "CATS" else word for word in words]
    option = [] if words[0] == "init" else ["--study", study]
    done = hardmoe(*words, *option)
    assert (done.exit_code, done.output.count("\n")) == (1, 1), done.output
    assert done.output.startswith("Error: ")
    assert message in done.output


WITH_STUDY = sorted(set(COMMANDS) - {"demo", "init", "bundle", "compare"})
NEEDED = {"lineage": ["trunk"], "predict": ["x.png"], "export": ["out", "--onnx"]}


@pytest.mark.parametrize("command", WITH_STUDY)
def test_a_study_that_is_not_there_is_one_line(study, command):
    done = hardmoe(command, *NEEDED.get(command, []), "--study", study.parent / "absent" / "study.toml")
    assert (done.exit_code, done.output.count("\n")) == (1, 1), done.output
    assert "absent/study.toml" in done.output


def raises(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("pipelines.cli.common.load_study", fail)


@pytest.mark.parametrize("bug", [TypeError("no"), KeyError("k"), AssertionError(), ValueError("no")], ids=repr)
def test_a_bug_is_left_to_its_traceback(study, monkeypatch, bug):
    raises(monkeypatch, bug)
    done = hardmoe("status", "--study", study)
    assert (done.exit_code, done.exception, done.output) == (1, bug, "")
    assert bug.__notes__ == [BUG]


def test_a_bug_is_printed_with_its_traceback_and_where_to_report_it(study):
    code = "from moe_core import study_file; study_file.load_study = None; from pipelines.cli.main import main; main()"
    command = [sys.executable, "-c", code, "status", "--study", str(study)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    first, *_, error, note = done.stderr.splitlines()
    assert first == "Traceback (most recent call last):"
    assert error == "TypeError: 'NoneType' object is not callable"
    assert note == BUG


def test_a_bug_in_a_step_is_named_by_what_was_raised():
    @dg.asset
    def trunk():
        raise ValueError("not\nfinite")

    with dg.instance_for_test() as instance:
        run = dg.materialize([trunk], instance=instance, raise_on_error=False)
        assert error_of(instance, run.run_id) == "ValueError: not finite"


SYSTEM = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/cats/study.toml"),
]


@pytest.mark.parametrize("error", [BadSetting("two\n  lines"), HardmoeError("x"), *SYSTEM], ids=repr)
def test_what_a_user_can_mend_is_one_line_and_a_traceback_only_where_it_is_asked_for(study, monkeypatch, error):
    raises(monkeypatch, error)
    done = hardmoe("status", "--study", study)
    assert (done.exit_code, done.output) == (1, f"Error: {' '.join(str(error).split())}\n")
    monkeypatch.setenv("HARDMOE_TRACE", "1")
    done = hardmoe("status", "--study", study)
    assert (done.exit_code, done.exception) == (1, error)
    assert not hasattr(error, "__notes__")
