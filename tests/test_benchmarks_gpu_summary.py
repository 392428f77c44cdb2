"""What a GPU day leaves behind: all parts by one command, and the table of docs/gpu.md."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "gpu"))

import short
import summary

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "gpu"
CARD = "NVIDIA H100, torch 2.11.0"


def measured(part, what, on=CARD, **fields):
    return json.dumps({"part": part, "what": what, "on": on} | fields)


def table_of(*lines):
    """The head, and what was measured in each row of the table."""
    head, _, _, _, *rows = summary.table(lines).splitlines()
    return head, [row.split(" | ")[2].removesuffix(" |") for row in rows]


def test_the_table_has_the_rows_of_the_docs():
    text = (ROOT / "docs" / "gpu.md").read_text("utf-8")
    for what, target, _ in summary.ROWS:
        assert f"| {what} | {target} | " in text


def test_nothing_is_measured_where_nothing_ran():
    assert table_of() == ("no card", ["not measured"] * 5)


def test_what_a_cpu_was_asked_is_not_measured():
    lines = [
        measured("b", f"tiny32: {name}", "no card, torch 2.13.0", images_per_s=3)
        for name in ("project, captured", "before")
    ]
    assert table_of(*lines) == ("no card", ["not measured"] * 5)


def test_what_was_skipped_or_failed_is_not_measured():
    lines = [
        measured("b", "tiny32: project, captured", skipped="3 s left"),
        measured("b", "tiny32: before", error="CUDA error"),
    ]
    assert table_of(*lines)[1] == ["not measured"] * 5


def test_the_trunk_s_step_is_compared_with_the_best_bare_loop():
    speeds = {
        "project": 2850,
        "project, captured": 2900,
        "bare": 2600,
        "bare, compiled": 3000,
        "project, images in host memory": 9999,
    }
    lines = [measured("b", f"resnet50: {name}", images_per_s=speed) for name, speed in speeds.items()]
    head, rows = table_of(*lines)
    assert head == CARD
    assert rows[0] == "0.97 (project, captured, against bare, compiled); 2,900 images/s"


def test_the_captured_step_is_compared_with_the_loop_of_before():
    lines = [
        measured("b", "tiny32: project, captured", images_per_s=250_000),
        measured("b", "tiny32: before", images_per_s=50_000),
    ]
    assert table_of(*lines)[1][1] == "5.0; 250,000 images/s against 50,000"


def test_an_iteration_is_compared_with_reading_once_and_its_objective_with_faiss():
    lines = [
        measured("c", "K=1024: an iteration of the project's fit", posts=10_000_000, times_reading_once=60.4, ms=211.4),
        measured("c", "K=1024: floor in ms", read_once=3.5, float32=105.0),
        measured("c", "K=1024: against torch on the CPU", differs=1e-6),
        measured("c", "K=1024: against FAISS on the CPU", differs=2e-6),
    ]
    expected = "60.4, 211 ms (reading 3.5 ms, its product in float32 105 ms); objective within "
    assert table_of(*lines)[1][2] == f"{expected}0.0002 %"
    assert table_of(*lines[:3])[1][2] == f"{expected}0.0001 %"
    assert table_of(lines[0])[1][2] == "60.4, 211 ms; objective within not measured"


def test_a_fit_of_fewer_posts_is_not_that_of_the_table():
    line = measured("c", "K=1024: an iteration of the project's fit", posts=2000, times_reading_once=2.0, ms=1.0)
    assert table_of(line)[1][2] == "not measured"


def test_experts_at_once_are_compared_with_one_by_one_captured_or_not():
    speeds = {
        "one after the other": 20_000,
        "one after the other, captured": 100_000,
        "captured, 16 streams": 300_000,
        "fused, captured, channels_last": 250_000,
    }
    lines = [measured("d", f"tiny, batch 64: {name}", images_per_s=speed) for name, speed in speeds.items()]
    expected = "15.0 (captured, 16 streams); 3.0 against one by one with `capture = true`"
    assert table_of(*lines)[1][3] == expected
    assert table_of(*lines[:2])[1][3] == "not measured"


@pytest.mark.parametrize(("code", "expected"), [(0, "runs, 80 s"), (124, "fails with exit code 124")])
def test_the_demo_runs_or_fails(code, expected):
    assert table_of(measured("f", "hardmoe demo", exit_code=code, seconds=80))[1][4] == expected


def test_the_newer_of_two_measurements_counts():
    lines = [measured("f", "hardmoe demo", exit_code=code, seconds=9) for code in (1, 0)]
    assert table_of(*lines)[1][4] == "runs, 9 s"


def test_results_are_printed_in_short(capsys, monkeypatch):
    record = {"part": "b", "what": "tiny32: project", "on": CARD, "at": 3.2, "images_per_s": 40_000, "spread": 0.01}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(record) + "\n"))
    short.main()
    assert capsys.readouterr().out == "b tiny32: project: images_per_s=40000 spread=0.01\n"


@pytest.fixture(scope="module")
def all_parts(tmp_path_factory):
    """(what all.sh prints with seconds for part c alone, the folder of its results)."""
    folder = tmp_path_factory.mktemp("all")
    (folder / "site").mkdir()
    (folder / "site" / ".ready").touch()
    variables = os.environ | {
        "OUT": str(folder / "results"),
        "SITE": str(folder / "site"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    command = ["bash", FOLDER / "all.sh", "0", "0", "300", "0", "0"]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), folder / "results"


def test_one_command_runs_the_parts_that_have_seconds(all_parts):
    (first, *lines), results = all_parts
    records = [json.loads(line) for line in (results / "results.jsonl").read_text("utf-8").splitlines()]
    assert first.startswith("== c: exit code 0, ")
    assert {record["part"] for record in records} == {"c"}
    assert [line[0] for line in lines[: len(records)]] == ["c"] * len(records)


def test_the_command_ends_with_the_table(all_parts):
    lines, results = all_parts
    table = (results / "summary.md").read_text("utf-8").splitlines()
    assert lines[-len(table) :] == table
    assert [row for row in table if row.endswith("| not measured |")] == table[-5:]
