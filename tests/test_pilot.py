"""The pilot: asked for by name, resumed where it was killed, and shown by status, report and plan."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from helpers.command import hardmoe, status, write
from helpers.growing import add_shard, opened
from helpers.plain import plain_command
from moe_core.engine.build import build, build_all
from moe_core.errors import TooFewPosts
from moe_core.recipes import demo
from moe_core.settings import Pilot
from moe_core.stages.pilot.plan import cost_lines, plan_of
from moe_core.store.artifact import Spec, StageOutput
from moe_core.study_file import load_study
from moe_core.workspace import open_study

FIELDS = {"experts", "clusters", "validation_posts", "gains", "curves", "over_training_on", "gain", "gain_ci95"}


def with_pilot(file, **more):
    """The study file, with settings of a pilot for its few posts; experts train on small batches."""
    study = load_study(file)
    pilot = Pilot(experts=(4, 2, 90), share=0.5, clusters=2)
    return write(
        file.parent, study.changed(pilot=pilot.model_dump() | more, expert_training={"batch_size": 8, "epochs": 8.0})
    )


@pytest.fixture
def ready(file):
    """The study file of a study up to its partition that wants a pilot."""
    return with_pilot(file)


def context_of(file):
    return open_study(load_study(file), file.parent)


@pytest.mark.slow
def test_a_pilot_is_made_by_its_command_and_shown_and_no_run_makes_it(ready):
    planned = json.loads(hardmoe("run", "--study", ready, "--dry-run", "--json").stdout)["will_run"]
    assert "pilot" not in {step["asset"] for step in planned}
    assert status(ready)["pilot"] is None
    done = hardmoe("pilot", "--study", ready)
    assert "K = 2, 4: 15 trainings on 0.125, 0.25, 0.5 of the posts of a cluster" in done.stdout
    assert "% of the images that the experts of one mixture are trained on" in done.stdout
    assert "K = 90 was left out: 0.125 of the" in done.stdout
    assert "Choice: " in done.stdout
    assert "1 made, 5 fresh, 0 failed" in done.stdout
    found = status(ready)
    assert {row["state"] for row in found["assets"] if row["asset"] == "pilot"} == {"fresh"}
    pilot = found["pilot"]
    assert pilot["is_current"]
    assert pilot["shares"] == [0.125, 0.25, 0.5]
    assert [row["experts"] for row in pilot["rows"]] == [2, 4]
    for row in pilot["rows"]:
        assert row.keys() >= FIELDS
        low, high = row["gain_ci95"]
        assert low < row["gain"] < high
        assert row["parts"].keys() == {"posts", "clusters", "seeds", "fit", "form"}
        cost = pilot["costs"]["experts"][str(row["experts"])]
        assert cost["bytes"] == row["experts"] * pilot["costs"]["training_on"]["bytes"] > 0
        assert cost["device_hours"] > 0
    assert pilot["chosen"] in (None, 2, 4)
    assert pilot["pilot"]["budgets"] == pytest.approx(0.875 * (1 + 2 / 2 + 2 / 4), rel=0.15)
    assert f"Choice: {pilot['choice']}" in hardmoe("status", "--study", ready).stdout
    again = json.loads(hardmoe("pilot", "--study", ready, "--dry-run", "--force", "--json").stdout)
    assert [step["asset"] for step in again["will_run"]] == ["pilot"]
    fresh = hardmoe("pilot", "--study", ready)
    assert "Cost: " not in fresh.stdout
    assert "0 made, 6 fresh" in fresh.stdout
    hardmoe("pilot", "--study", with_pilot(ready, seed=1), "--dry-run")
    stale = status(ready)
    assert "The last pilot, which is not of the study as it is now:" in hardmoe("status", "--study", ready).stdout
    assert [row["why"] for row in stale["assets"] if row["asset"] == "pilot"] == [
        "setting pilot.seed changed from 0 to 1"
    ]
    assert stale["pilot"]["is_current"] is False


def test_a_pilot_of_an_older_version_of_the_code_is_as_none(ready):
    context = context_of(ready)
    older = Spec("pilot", None, "1", {}, {})
    context.store.make(older, lambda folder: StageOutput({"bytes": (folder / "pilot.json").write_text("{}")}))
    assert context.store.versions("pilot", None)
    assert status(ready)["pilot"] is None


@pytest.mark.slow
def test_a_pilot_that_was_killed_goes_on_and_finds_the_same(ready, tmp_path):
    shutil.copytree(ready.parent, tmp_path / "whole")
    environment = os.environ | {"HARDMOE_THREADS": "1"}
    subprocess.run(plain_command(tmp_path / "whole" / "study.toml", "pilot"), check=True, env=environment)
    context = context_of(ready)
    before: dict = {}
    for trained in (1, 5):
        process = subprocess.Popen(plain_command(ready, "pilot"), env=environment)
        while len(kept(context)) < trained:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = {file: file.stat().st_mtime_ns for file in kept(context)}
        assert now.items() >= before.items(), "what is trained is not trained again"
        before = now
    assert context.find("pilot") is None
    subprocess.run(plain_command(ready, "pilot"), check=True, env=environment)
    whole, found = (context_of(file).need("pilot") for file in (tmp_path / "whole" / "study.toml", ready))
    assert (found.version, found.content_hash) == (whole.version, whole.content_hash)
    assert found.metadata["training_images"] == whole.metadata["training_images"]
    assert kept(context) == [], "nothing is left of the work"


def kept(context):
    """Files of the work with what networks that were trained answer."""
    works = [work.place.path(work.name) for work, *_ in context.store.works("pilot")]
    return [file for work in works for pattern in ("on-*", "k*") for file in work.glob(f"{pattern}.safetensors")]


@pytest.fixture
def built(copied):
    """A study whose whole graph was made, with its pilot made since."""
    changed = with_pilot(write(copied.root, copied.study), experts=(2,))
    build(context_of(changed), "pilot")
    return changed


def test_the_report_shows_a_pilot_that_was_made_and_waits_for_none(built):
    context = context_of(built)
    wanted = context.planner.spec("report")
    assert wanted.inputs["pilot"] == context.version("pilot")
    assert set(context_of(with_pilot(built, experts=(3,))).planner.spec("report").inputs) == {"evaluation", "partition"}
    with_pilot(built, experts=(2,))
    for name in ("expert", "shared_decoder", "mixture", "evaluation", "report"):
        build_all(context_of(built), [name])
    page = context_of(built).need("report").file("report.html").read_text("utf-8")
    assert '<section id="pilot">' in page
    assert "Choice: training the trunk on" in page or "Choice: K = 2" in page


@pytest.mark.slow
def test_experts_answer_through_a_decoder_made_as_the_study_makes_it_and_see_as_many_images_as_their_share(ready):
    """As many as the share says: of a small one the last posts of an epoch, too few for a batch, were left out."""
    gains, images = [], []
    for mode in ("frozen", "refit"):
        how = {"mode": mode, "refit_epochs": 6.0, "refit_lr": 0.2}
        few = {"decoder": how, "expert_training": {"batch_size": 18}, "pilot": {"experts": (2,)}}  # both clusters drawn
        file = write(ready.parent, load_study(ready).changed(**few))
        build(context_of(file), "pilot")
        result = json.loads(context_of(file).need("pilot").file("pilot.json").read_text("utf-8"))
        gains.append([row["gains"] for row in result["rows"]])
        images.append(result["pilot"]["budgets"])
    assert gains[0] != gains[1]
    assert images[0] == images[1] == pytest.approx(0.875 * (1 + 2 / 2), rel=0.02)


def test_a_pilot_that_failed_is_in_the_status(ready):
    write(ready.parent, load_study(ready).changed(data={"validation": 0.0}))
    failed = hardmoe("pilot", "--study", ready, check=False)
    assert failed.returncode == 1
    found = status(ready)
    assert [row["state"] for row in found["assets"] if row["asset"] == "pilot"] == ["failed"]
    assert found["pilot"] is None
    assert "measures on validation posts, and there is none" in hardmoe("status", "--study", ready).stdout


def test_posts_that_come_later_leave_a_pilot_as_it_is_while_the_trunk_is_kept(study_of):
    study, root = study_of()
    before = opened(study, root).version("pilot")
    add_shard(root.parent / "source", 3)
    now = opened(study, root)
    assert now.planner.frozen is not None
    assert now.version("pilot") == before


def test_the_number_of_experts_that_is_chosen_leaves_the_pilot_fresh(three):
    root = three / "store"
    study = load_study(root / "study.toml")
    studies = [study.changed(partition={"experts": experts}) for experts in (2, 8)]
    assert len({open_study(one, root).version("pilot") for one in studies}) == 1


def test_numbers_of_experts_that_are_too_large_are_left_out_with_a_word():
    plan = plan_of(demo().changed(expert_training={"batch_size": 128, "epochs": 8.0}), train=16_800, validation=150)
    assert plan.experts == (4, 8)
    assert plan.left_out == {
        16: "0.0625 of the 1,050 training posts an expert is less than a batch of 128",
        32: "0.0625 of the 525 training posts an expert is less than a batch of 128",
    }
    assert plan.clusters == {4: 3, 8: 3}
    assert plan.trainings == 3 * 7
    assert plan.budgets == pytest.approx(7 / 16 * (1 + 3 / 4 + 3 / 8))
    quick = plan_of(demo().changed(expert_training={"batch_size": 128, "epochs": 4.0}), train=16_800, validation=150)
    assert quick.left_out[8] == "0.0625 of the 2,100 training posts an expert is trained for 4.1 steps, wanted 8"
    fine = plan_of(demo().changed(partition={"fine": 8}), train=168_000, validation=1500)
    assert fine.left_out[16] == "partition.fine is 8: so many centroids cannot be packed into more experts"
    few = plan_of(demo().changed(expert_training={"batch_size": 8}), train=16_800, validation=150)
    assert few.left_out == {
        16: "150 validation posts, wanted 160: 10 each",
        32: "150 validation posts, wanted 320: 10 each",
    }


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (16_800, 0, "there is none that carries a hashtag: wanted at least 40 for 4 experts; raise data.validation"),
        (100, 90, "too few for each of pilot.experts .K = 4: 0.0625 of the 25 training posts an expert is less than"),
    ],
)
def test_posts_that_are_too_few_are_an_error_that_says_how_many_are_wanted(train, validation, message):
    with pytest.raises(TooFewPosts, match=message):
        plan_of(demo(), train, validation)


def test_the_cost_is_told_before_posts_are_counted(tmp_path):
    lines = cost_lines(open_study(demo(), tmp_path))
    assert lines[0].startswith("K = 4, 8, 16, 32: 39 trainings on 0.0625, 0.125, 0.25 of the posts")
    assert lines[1] == "Cost: 105 % of the images that the experts of one mixture are trained on"
