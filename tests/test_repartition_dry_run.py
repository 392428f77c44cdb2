"""What a dry run says about a repartition that is due."""

from dataclasses import replace

from helpers.arrivals import shards_of, status
from helpers.growing import add_shard, opened
from moe_core.settings import Partition
from pipelines.run.estimate import Cost, Outlook, outlook
from pipelines.run.scheduler import tasks_of


def test_until_the_partition_is_made_experts_wait_for_it(study_of):
    study, root = study_of()
    add_shard(shards_of(root), 3, posts=30)
    states = status(opened(study, root))
    assert {states["expert", f"e00{k}"] for k in range(3)} == {("stale", "waits for partition")}
    assert states["mixture", None] == ("stale", "waits for partition")


# ---- what a dry run says of it


def planned(study, root):
    context = opened(study, root)
    return outlook(context, tasks_of(context, None), workers=1)


def test_a_dry_run_says_which_experts_a_new_shard_may_train_again_and_names_no_trunk_that_is_kept(study_of):
    study, root = study_of()
    add_shard(shards_of(root), 3, posts=30)
    said = planned(study, root)
    steps = {step.name: step for step in said.steps}
    may = {name: step.why for name, step in steps.items() if step.may}
    assert may == {f"expert:e00{k}": "if more than 10 % of its posts changed" for k in range(3)} | {
        "shared_decoder": "if an expert is trained again"
    }
    assert not {"trunk", "vocabulary"} & set(steps)
    assert steps["posts:s3"].why == "missing"
    assert steps["mixture"].why == "follows from partition, expert, shared_decoder"
    slow = {name: replace(step, cost=Cost(60.0, 1)) for name, step in steps.items() if step.may or name == "partition"}
    assert Outlook(list(slow.values()), 0, 1).seconds == 300
    assert Outlook(list(slow.values()), 0, 1).least.seconds == 60
    document = said.as_json()
    assert {f"{row['asset']}:{row['key']}" for row in document["may_run"]} >= {"expert:e000", "shared_decoder:None"}
    assert not {"expert", "shared_decoder"} & {row["asset"] for row in document["will_run"]}
    assert document["estimate"]["at_least"]["bytes"] < document["estimate"]["bytes"]
    text = list(said.as_lines())
    assert any(line.startswith("expert:e000 ") and "may run: if more than 10 %" in line for line in text)
    assert any(f" would run, {len(may)} may run, " in line for line in text)
    assert "at least" in text[-1]
    assert "at most" in text[-1]


def test_a_dry_run_is_sure_of_experts_that_nothing_can_keep(study_of):
    study, root = study_of()
    add_shard(shards_of(root), 3, posts=30)
    longer = study.model_copy(update={"expert_training": study.expert_training.model_copy(update={"epochs": 2})})
    assert not [step for step in planned(longer, root).steps if step.may]
    refit = study.model_copy(update={"decoder": study.decoder.model_copy(update={"mode": "refit"})})
    assert {step.asset for step in planned(refit, root).steps if step.may} == {"expert"}
    more = study.model_copy(update={"partition": Partition(experts=4, pca=8)})
    steps = {step.name: step.may for step in planned(more, root).steps}
    assert [steps[f"expert:e00{k}"] for k in range(4)] == [True, True, True, False]
    assert not steps["shared_decoder"]
