"""Publications in the command, in Dagster's UI and in words."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from helpers.publishing import hardmoe, publish, version
from helpers.two_mixtures import BAD, GOOD, make
from moe_core.data.takedowns import Entry, Takedowns
from moe_core.serving import publication
from moe_core.serving.publication import published_bundle
from moe_core.stages.mixture import comparison
from moe_core.stages.mixture.comparison import force, judge, roll_back
from moe_core.store.documents import FolderDocuments
from moe_core.study_file import dump_study
from moe_core.workspace import open_study
from pipelines.cli.common import publication_of, show_publication

SCORES = {"measure": "p_at_1", "p_at_1_new": 0.3, "p_at_1_published": 0.2, "validation_posts": 9}


@pytest.fixture
def root(both, tmp_path):
    return shutil.copytree(both, tmp_path / "store")


def test_nothing_published_yet_says_what_to_do(root):
    with pytest.raises(ValueError, match=r"no mixture of .*study.toml is published: `hardmoe run`"):
        published_bundle(root)


def test_the_command_publishes_goes_back_and_lists(root):
    file = root / "study.toml"
    good, bad = version(root, GOOD), version(root, BAD)
    assert f"published: {good}" in hardmoe("publish", "--study", file).output
    refused = hardmoe("publish", "--study", file, "--version", bad)
    assert refused.exit_code == 1
    assert "not published: P@1" in refused.output
    assert "--force publishes it all the same" in refused.output
    assert (
        f"published: {bad}   (before: {good})"
        in hardmoe("publish", "--study", file, "--version", bad[:8], "--force").output
    )
    assert f"published: {good}" in hardmoe("publish", "--study", root, "--rollback").output
    listed = hardmoe("publish", "--study", file, "--list", "--json")
    said = json.loads(listed.output)
    assert (said["published"], said["previous"]) == (good, "")
    assert [d["action"] for d in said["history"]] == ["published", "refused", "forced", "rolled back"]
    assert {d["by"] for d in said["history"]} == {"hardmoe publish"}
    for wrong, why in (
        (["--rollback", "--list"], "exclude one another"),
        (["--version", "nothing"], f"0 versions of mixture in {root} begin with 'nothing': there are "),
        (["--version", "", "--force"], f"2 versions of mixture in {root} begin with '': "),
    ):
        done = hardmoe("publish", "--study", file, *wrong)
        assert done.exit_code == 1
        assert why in done.output


def test_going_back_to_a_mixture_that_saw_forgotten_posts_warns(root):
    file = root / "study.toml"
    good, bad = version(root, GOOD), version(root, BAD)
    book = Takedowns.load(FolderDocuments(root)).adding("id", ["a post"])
    book.note("id", "a post", [], [f"mixture {bad}"])
    book.finished().save(FolderDocuments(root))
    warning = "the published mixture saw posts that were taken down since"
    assert warning in hardmoe("publish", "--study", file, "--version", bad, "--force").output
    assert warning not in hardmoe("publish", "--study", file, "--version", good, "--force").output
    assert warning in hardmoe("publish", "--study", file, "--rollback").output


def test_why_a_mixture_is_not_published_is_told_with_what_came_after(root):
    context = open_study(GOOD, root)
    good, bad = version(root, GOOD), version(root, BAD)
    for which in (bad, good, bad):
        force(context, which)
    at = publication.read_log(FolderDocuments(root)).last(good).at
    assert publication_of(context)["why"] == (
        f"it was forced on {at}; since then {bad} was forced: by hand, without a comparison"
    )
    roll_back(context)
    assert publication_of(context)["is_published"]


def test_a_worse_cross_entropy_is_said_of_a_mixture_that_is_published():
    scores = SCORES | {"p_at_1_gain": 0.1, "p_at_1_gain_ci95": [0.05, 0.15]}
    worse = scores | {"cross_entropy_new": 3.2, "cross_entropy_published": 3.1}
    assert "its cross-entropy is higher, 3.2000 against 3.1000" in comparison.judgment_of(0.005, "v", worse).why
    assert "cross-entropy" not in comparison.judgment_of(0.005, "v", scores).why


def test_a_refusal_that_may_be_chance_says_so():
    unsure = SCORES | {"p_at_1_gain": -0.01, "p_at_1_gain_ci95": [-0.03, 0.01]}
    sure = SCORES | {"p_at_1_gain": -0.05, "p_at_1_gain_ci95": [-0.07, -0.03]}
    for scores, chance in ((unsure, True), (sure, False)):
        verdict = comparison.judgment_of(0.005, "v", scores)
        assert not verdict.publish
        assert ("that may be chance (95 % of the difference: -0.0300 to +0.0100)" in verdict.why) == chance
        # half an interval of 0.02 at 9 posts is the 0.005 beyond the margin at 16 times as many
        assert verdict.why.endswith(": about 150 would decide") == chance


def test_what_is_published_by_hand_is_shown_in_dagsters_ui(root):
    """In a process of its own: the assets belong to one study a process."""
    import dagster as dg

    publish(root, GOOD)
    (root / "dagster").mkdir()
    (root / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}")
    options = ["publish", "--study", str(root / "study.toml"), "--version", version(root, BAD), "--force"]
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
    subprocess.run([sys.executable, "-m", "pipelines.cli.main", *options], check=True, env=environment)
    with dg.DagsterInstance.from_config(str(root / "dagster")) as instance:
        (record,) = instance.fetch_observations(dg.AssetKey("published"), limit=2).records
        assert record.asset_observation.metadata["published"].value == version(root, BAD)
        key = dg.AssetCheckKey(dg.AssetKey("published"), "newest_is_published")
        (check,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=2)
        said = check.event.dagster_event.asset_check_evaluation_data
        assert (said.passed, said.severity) == (False, dg.AssetCheckSeverity.WARN)
        assert said.description == "not published: nothing was published before"


def test_results_say_whether_the_table_is_that_of_the_published_mixture(root):
    make(open_study(GOOD, root), "evaluation")
    file = root / "study.toml"
    said = json.loads(hardmoe("results", "--study", file, "--json").output)
    assert said["publication"] == {
        "published": version(root, GOOD),
        "mixture": version(root, GOOD),
        "is_published": True,
        "why": "nothing was published before",
    }
    make(open_study(BAD, root), "evaluation")
    file.write_text(dump_study(BAD))
    said = json.loads(hardmoe("results", "--study", file, "--json").output)
    assert not said["publication"]["is_published"]
    assert said["publication"]["published"] == version(root, GOOD)
    assert "below it" in said["publication"]["why"]
    assert f"This mixture is not published, {version(root, GOOD)} is: P@1" in hardmoe("results", "--study", file).output


def test_what_was_decided_on_a_mixture_is_said_published_or_refused(root, capsys):
    publish(root, GOOD)
    show_publication(open_study(GOOD, root), always=True)
    assert capsys.readouterr().out == f"Published: mixture {version(root, GOOD)}: nothing was published before\n"
    publish(root, BAD)
    show_publication(open_study(BAD, root), always=True)
    assert capsys.readouterr().out.startswith(f"This mixture is not published, {version(root, GOOD)} is: P@1 0.")


def test_a_refusal_says_that_the_published_one_saw_what_was_taken_down(root):
    publish(root, GOOD)
    entry = Entry("id", "hash", datetime.now(UTC), saw=(f"mixture {version(root, GOOD)}",), done=True)
    Takedowns("salt", {("id", "hash"): entry}).save(FolderDocuments(root))
    found = judge(open_study(BAD, root), version(root, BAD), version(root, GOOD))
    assert not found.publish
    assert found.why.endswith("; the published one saw posts that were taken down since")
