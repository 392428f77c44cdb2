"""What is ready when: shard by shard where both have shards, else stage by stage."""

from moe_core.engine.stage import Graph, Stage
from moe_core.study_file import load_study
from moe_core.workspace import open_study
from pipelines.run.dag import Dag
from pipelines.run.plan import planned_tasks


def stage(name, keys, *reads):
    return Stage(name, "1", reads, lambda study: {}, lambda planner, key: {}, lambda context, spec, folder: None, keys)


GRAPH = Graph(
    [
        stage("posts", "shards"),
        stage("trunk", None, "posts"),
        stage("features", "shards", "posts", "trunk"),
        stage("gate", None, "features"),
        stage("expert", "experts", "part"),
        stage("decoder", None, "expert"),
    ],
    {"part": "gate"},
)
POSTS, FEATURES = [("posts", "a"), ("posts", "b")], [("features", "a"), ("features", "b")]
EXPERTS = [("expert", "e0"), ("expert", "e1")]
ALL = [*POSTS, ("trunk", None), *FEATURES, ("gate", None), *EXPERTS, ("decoder", None)]


def finish(dag, *tasks):
    for task in tasks:
        dag.start(task)
        dag.done(task)


def test_each_task_is_ready_once_what_it_reads_is_done():
    dag = Dag(GRAPH, ALL)
    assert dag.ready == POSTS
    finish(dag, POSTS[0])
    assert dag.ready == POSTS[1:], "the trunk waits for every shard"
    finish(dag, POSTS[1])
    assert dag.ready == [("trunk", None)]
    finish(dag, ("trunk", None), *FEATURES)
    finish(dag, ("gate", None))
    assert dag.ready == EXPERTS
    finish(dag, EXPERTS[1])
    assert dag.ready == EXPERTS[:1]
    finish(dag, EXPERTS[0])
    assert dag.ready == list(dag.left) == [("decoder", None)]
    finish(dag, ("decoder", None))
    assert not dag.left


def test_a_shard_waits_for_its_own_posts_only():
    dag = Dag(GRAPH, [*POSTS, *FEATURES])
    finish(dag, POSTS[1])
    assert dag.ready == [POSTS[0], FEATURES[1]]


def test_what_is_not_in_the_plan_is_not_waited_for():
    assert Dag(GRAPH, [FEATURES[0], ("decoder", None)]).ready == [FEATURES[0], ("decoder", None)]
    assert Dag(GRAPH, [("decoder", None)]).ready == [("decoder", None)]


def test_a_failure_stops_what_depends_on_it_and_nothing_else():
    dag = Dag(GRAPH, [("trunk", None), *EXPERTS, ("decoder", None)])
    dag.start(EXPERTS[0])
    assert dag.give_up(EXPERTS[0]) == [("decoder", None)]
    assert dag.ready == [("trunk", None), EXPERTS[1]]
    finish(dag, EXPERTS[1])
    assert list(dag.left) == [("trunk", None)]


def test_a_task_that_failed_before_it_was_ready_is_not_left():
    dag = Dag(GRAPH, ALL)
    assert dag.give_up(EXPERTS[0]) == [("decoder", None)]
    finish(dag, *POSTS, ("trunk", None), *FEATURES, ("gate", None))
    assert dag.ready == list(dag.left) == EXPERTS[1:]


def test_what_another_plan_started_frees_nothing_when_it_ends():
    dag = Dag(GRAPH, ALL)
    dag.done(POSTS[0])
    assert dag.ready == POSTS
    dag.give_up(POSTS[0])
    dag.done(POSTS[0])
    assert dag.ready == POSTS[1:]


def test_what_is_ready_is_in_the_order_of_the_plan_not_of_its_release():
    plan = [("trunk", None), FEATURES[0], ("gate", None), ("control", None)]
    dag = Dag(Graph([*GRAPH.values(), stage("control", None)], {}), plan)
    assert dag.ready == [("trunk", None), ("control", None)]
    finish(dag, ("trunk", None))
    assert dag.ready == [FEATURES[0], ("control", None)]


def test_ten_thousand_experts_are_no_work():
    experts = [("expert", f"e{n}") for n in range(10_000)]
    dag = Dag(GRAPH, [*experts, ("decoder", None)])
    finish(dag, *experts)
    assert dag.ready == [("decoder", None)]


def test_the_expert_with_the_most_posts_comes_first_once_that_is_known(prepared):
    context = open_study(load_study(prepared), prepared.parent)
    sizes = dict(zip(context.experts, context.need("partition").metadata["sizes"], strict=True))
    order = [task.key for task in planned_tasks(context) if task.stage == "expert"]
    assert [sizes[key] for key in order] == sorted(sizes.values(), reverse=True)
    assert order != context.experts, "the order of their numbers is another one"
    unbuilt = open_study(context.study, prepared.parent / "nothing")
    assert [task.key for task in planned_tasks(unbuilt) if task.stage == "expert"] == unbuilt.experts
