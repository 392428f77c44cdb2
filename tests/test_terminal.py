"""What a person at a terminal sees of a real run: names of what is finished, progress, row names, the decision."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

from helpers.terminal import Screen, in_terminal
from helpers.two_mixtures import tiny_study, write
from moe_core.settings import Partition, Source
from moe_core.stages.training.log import SPEED_SECONDS, TrainingLog
from moe_core.study_file import load_study
from moe_core.training.loop import Measurement
from moe_core.workspace import open_study
from pipelines.cli.progress import Display
from pipelines.run.forecast import STEP_SECONDS, Forecast
from pipelines.run.plan import planned_tasks
from pipelines.run.scheduler import Running
from pipelines.run.task import Task

ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}


def command(*arguments):
    return [sys.executable, "-m", "pipelines.cli.main", *map(str, arguments)]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("terminal")
    training = tiny_study().trunk.model_copy(update={"epochs": 1.0})
    source = Source(format="synthetic", posts=300, shards=1)
    write(root, tiny_study(source=source, trunk=training, expert_training=training))
    return root / "study.toml"


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "until"), [(80, "trunk"), (160, "published"), (80, None)])
def test_every_finished_asset_keeps_its_name_on_the_screen(study, columns, until):
    """One study, in three runs one after the other, so that each makes something."""
    context = open_study(load_study(study), study.parent)
    due = [task.label for task in planned_tasks(context, until)]
    before = [row["asset"] for row in status(study) if row["state"] == "fresh"]
    options = ["--until", until] if until else []
    code, screen = in_terminal(command("run", "--study", study, *options), columns, ENVIRONMENT)
    text = "\n".join(screen.lines)
    assert code == 0, text
    done = [line.split()[1] for line in screen.lines if line.startswith("done ")]
    assert sorted(done) == sorted(name for name in due if name.split(":")[0] not in before), text
    assert f"{len(done)} made, " in text
    progress = [int(number) for number in re.findall(rf"(\d+) of {len(due)} done, ", screen.fed)]
    assert progress == sorted(progress), "it goes on"
    assert progress
    assert not any(line.startswith("running ") for line in screen.lines), "what was under way has gone"
    if until == "trunk":
        assert "Warning: " in text  # of 300 posts, before the trunk was trained
        assert text.index("Warning: ") < text.index("done    trunk")
    if until == "published":
        assert "Published: mixture " in text
    if until is None:
        (first, *_) = [number for number, line in enumerate(screen.lines) if "held-out posts" in line]
        rows = [line.split()[0] for line in screen.lines[first:] if line.startswith("   ")]
        assert {"most_frequent", "trunk", "mixture_topk", "best_expert_oracle"} <= set(rows)
        assert "Comparison by P@1" in text


def status(study):
    done = subprocess.run(
        command("status", "--study", study, "--json"), capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    return json.loads(done.stdout)["assets"]


def test_the_screen_of_these_tests_overwrites_as_a_terminal_does():
    screen = Screen(5, rows=3)
    screen.feed("abcdefg\r\n\x1b[32mnext\x1b[0m\r\n123\r\x1b[2K\x1b[1A\x1b[2Kover\r\n")
    assert screen.lines == ["abcde", "fg", "over", ""]
    screen.feed("\x1b[9Ax")  # no further up than the three lines that are in sight
    assert screen.lines == ["abcde", "xg", "over", ""]


def test_a_speed_is_a_mean_over_minutes(tmp_path):
    """100 images a second for a minute, then ten seconds at 10: 6,100 images in 70 s, not 10 a second."""
    now, seen, reports = [0.0], 0, []
    log = TrainingLog(tmp_path / "log.jsonl", reports.append, lambda: now[0])

    def measured(rate):
        log.add(Measurement(10, 10, 0.5, 0.1, rate, seen))
        return reports[-1]["images_per_second"]

    assert measured(100.0) == 100
    for rate, seconds in ((100, 60), (10, 10)):
        for _ in range(seconds):
            now[0] += 1
            seen += rate
            found = measured(float(rate))
    assert found == pytest.approx(6100 / 70)
    for _ in range(int(SPEED_SECONDS) + 1):
        now[0] += 1
        seen += 10
        found = measured(10.0)
    assert found == pytest.approx(10)


def test_progress_counts_tasks_and_adds_up_the_time_of_the_rest(tmp_path):
    """Two experts that took 30 s each, one after the other: one is half done, one is to come."""
    context = open_study(tiny_study(partition=Partition(experts=3, pca=8)), tmp_path)
    names = [("trunk", None), *(("expert", key) for key in ("e000", "e001", "e002"))]
    forecast = Forecast(context, [context.planner.task(*name) for name in names], workers=1)
    forecast.event("fresh", "trunk")
    forecast.event("started", "expert:e000")
    forecast.begun["expert:e000"] -= 30
    forecast.event("done", "expert:e000")
    running = Running(Task("expert", "e001"), "run", time.monotonic(), "version")
    report = {"step": 50, "steps": 100, "images_seen": 500, "images_per_second": 33.0}
    left = forecast.seconds_left([running], {"expert:e001": report})
    assert left == pytest.approx(500 / 33 + 30, abs=0.5)
    assert forecast.line([running], {"expert:e001": report}) == "2 of 4 done, about 45 s left"


def test_an_unknown_training_makes_the_time_left_unknown_and_a_first_report_tells_it(tmp_path):
    context = open_study(tiny_study(), tmp_path)
    forecast = Forecast(context, [context.planner.task(name) for name in ("trunk", "report")], workers=1)
    assert forecast.line([], {}) == "0 of 2 done, time left unknown until a network trains"
    running = Running(Task("trunk", None), "run", time.monotonic(), "version")
    said = {"step": 10, "steps": 20, "images_seen": 1000, "images_per_second": 10.0}
    assert forecast.seconds_left([running], {"trunk": said}) == pytest.approx(100 + STEP_SECONDS)


def test_a_narrow_terminal_keeps_name_share_and_time_left(tmp_path):
    display = Display(open_study(tiny_study(), tmp_path), (), 1)
    (tmp_path / ".progress").mkdir()
    report = {"run": "mine", "step": 50, "steps": 200, "loss": 2.5, "images_per_second": 100.0, "images_seen": 1600}
    (tmp_path / ".progress" / "separate_expert.e000.json").write_text(json.dumps(report))
    runs = [Running(Task("separate_expert", "e000"), "mine", time.monotonic(), "version")]
    _, narrow = display.lines(runs, {}, 80)
    assert len(narrow) <= 80
    assert narrow.split()[1] == "separate_expert:e000"
    assert narrow.endswith("48 s left")
    assert " 25 %" in narrow
    _, wide = display.lines(runs, {}, 160)
    assert "loss 2.500" in wide
    assert "step 50" in wide


WARNS = """
import sys
from pipelines.cli.progress import Display
with Display(None, (), 1) as display:
    print("to standard error", file=sys.stderr)
"""


def test_standard_error_that_goes_to_a_file_stays_there(tmp_path):
    shell = ["sh", "-c", '"$0" -c "$1" 2> "$2"', sys.executable, WARNS, str(tmp_path / "errors")]
    code, screen = in_terminal(shell, 80, ENVIRONMENT)
    assert code == 0, (tmp_path / "errors").read_text()
    assert (tmp_path / "errors").read_text() == "to standard error\n"
    assert "to standard error" not in screen.fed
