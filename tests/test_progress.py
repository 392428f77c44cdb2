"""What is shown while runs are under way: steps, time left, who waits for whom, results."""

import json
import threading
import time

from helpers.with_controls import small_study
from moe_core.engine.build import build
from moe_core.engine.stage import Graph, Stage
from moe_core.processes import this_process
from moe_core.stages.graph import GRAPH
from moe_core.store.artifact import StageOutput
from moe_core.workspace import open_study
from pipelines.cli.progress import Display, result_line
from pipelines.run.scheduler import Running
from pipelines.run.task import Summary, Task


def make_slowly(begun, go):
    def make(context, spec, folder):
        begun.set()
        assert go.wait(30)
        (folder / "a").write_text("a")
        return StageOutput({"loss": 1.5, "seconds": 2.0, "training_images": 300})

    stage = Stage("slow", "1", (), lambda study: {}, lambda planner, key: {}, make)
    return Graph([*GRAPH.values(), stage], GRAPH.aliases)


def test_who_waits_for_another_process_says_so_and_finds_what_it_made(tmp_path):
    begun, go = threading.Event(), threading.Event()
    graph = make_slowly(begun, go)
    found, said = {}, []
    first = threading.Thread(
        target=lambda: found.update(first=build(open_study(small_study(), tmp_path, graph=graph), "slow"))
    )
    first.start()
    assert begun.wait(30)
    context = open_study(small_study(), tmp_path, lambda what: (said.append(what), go.set()), graph=graph)
    builder = context.store.builder(context.spec("slow", None))
    second = build(context, "slow")
    first.join()
    assert said == [{"waits_for": str(builder)}]
    assert builder.process == this_process()
    assert (found["first"].reused, second.reused) == (False, True)
    assert context.store.builder(context.spec("slow", None)) is None


def test_the_display_tells_steps_time_left_and_who_waits_for_whom(tmp_path):
    display = Display(open_study(small_study(), tmp_path), (), 1)
    (tmp_path / ".progress").mkdir()
    report = {"pid": 7, "run": "mine", "step": 50, "steps": 200, "loss": 2.5, "images_per_second": 100.0}
    (tmp_path / ".progress" / "expert.e000.json").write_text(json.dumps(report | {"images_seen": 1600}))
    (tmp_path / ".progress" / "expert.e001.json").write_text(
        json.dumps({"pid": 8, "run": "mine", "waits_for": "built on gpu02"})
    )
    (tmp_path / ".progress" / "expert.e002.json").write_text(
        json.dumps({"host": "gpu02", "pid": 8, "run": "1a2b3c4d-5e6f"})
    )
    (tmp_path / ".progress" / "trunk.json").write_text(
        json.dumps({"pid": 8, "run": "mine", "waits": "a GPU: 3 in use"})
    )
    runs = [Running(Task("expert", f"e00{k}"), "mine", time.monotonic(), "v") for k in range(3)]
    runs.append(Running(Task("trunk", None), "mine", time.monotonic(), "v"))
    _, one, two, three, gpu, four = display.lines(runs, {"trunk": "built on gpu02 by run 1a2b3c4d"}, 1000)
    assert one.split()[4:] == ["25", "%", "step", "50", "loss", "2.500", "100", "images/s", "48", "s", "left"]
    assert two.endswith("waits: built on gpu02")
    assert three.endswith("waits: built on gpu02 by run 1a2b3c4d (process 8)")
    assert gpu.endswith("0 s  waits for a GPU: 3 in use")
    assert four == f"waiting {'trunk':24} built on gpu02 by run 1a2b3c4d"


def test_the_result_of_each_expert_is_a_line(tmp_path):
    go = threading.Event()
    go.set()
    graph = make_slowly(threading.Event(), go)
    context = open_study(small_study(), tmp_path, graph=graph)
    build(context, "slow")
    slow, other, last = Task("slow", None), Task("expert", "e000"), Task("expert", "e001")
    summary = Summary(failed={other.name: "broken"})
    summary.note(slow.name, reused=True)
    assert [result_line(context, task, summary) for task in (slow, other, last)] == [
        f"{'slow':24} fresh    loss 1.500  2 s  150 images/s",
        f"{'expert:e000':24} failed   broken",
        f"{'expert:e001':24} not started",
    ]
