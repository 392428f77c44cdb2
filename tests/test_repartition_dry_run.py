"""What a dry run says about a repartition that is due."""

from helpers.arrivals import shards_of, status
from helpers.growing import add_shard, opened
from moe_core.store.artifact import name_of
from pipelines.run.estimate import RunPlan, Step, run_plan
from pipelines.run.plan import planned_tasks

WAITS = "waits for partition; runs where its inputs changed"


def test_until_the_partition_is_made_experts_wait_for_it(study_of):
    study, root = study_of()
    add_shard(shards_of(root), 3, posts=30)
    states = status(opened(study, root))
    assert {states["expert", f"e00{k}"] for k in range(3)} == {("stale", "waits for partition")}
    assert states["mixture", None] == ("stale", "waits for partition")


def test_a_dry_run_names_what_waits_for_the_partition_and_no_trunk_that_is_kept(study_of, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    study, root = study_of()
    add_shard(shards_of(root), 3, posts=30)
    context = opened(study, root)
    plan = run_plan(context, planned_tasks(context, None), force=False, workers=1)
    why = {name_of(step.asset, step.key): step.why for step in plan.steps}
    assert not {"trunk", "vocabulary"} & set(why)
    assert why["posts:s3"] == "missing"
    assert {why[name] for name in ("expert:e000", "shared_decoder", "mixture")} == {WAITS}
    assert why["published"] == "waits for partition", "it was never made"
    assert plan.fresh == len(context.planner.tasks()) - len(plan.steps) > 0
    document = plan.as_json()
    assert {f"{row['asset']}:{row['key']}" for row in document["will_run"]} >= {"expert:e000", "shared_decoder:None"}
    assert any(line.startswith("expert:e000 ") and line.endswith(WAITS) for line in plan.as_lines())


def test_the_last_durations_are_summed_and_what_never_ran_is_counted():
    plan = RunPlan([Step("trunk", None, "missing", 60.0), Step("expert", "e000", "missing", None)], fresh=2, workers=2)
    assert (plan.seconds, plan.never_run) == (60.0, ["expert:e000"])
    assert list(plan.as_lines()) == [
        f"{'trunk':28} {'60 s':>12}  missing",
        f"{'expert:e000':28} {'never run':>12}  missing",
        "2 would run, 2 are fresh",
        "Last time they took 60 s in all, 2 at once; 1 never ran before",
    ]
