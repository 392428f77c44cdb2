"""How the time of `hardmoe status` and `run --dry-run` grows with experts and shards.

    python benchmarks/planning.py                    # K = 100, 1,000 and 10,000 experts and as many shards
    python benchmarks/planning.py --experts 100 400  # fewer

A store is filled with artifacts that hold nothing but a manifest, at the versions that the study asks for, so that
planning and looking up are all that is timed. Prints milliseconds of processor time an artifact, the smallest of
several, and how they grow. Filling is faster with TMPDIR=/dev/shm.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

from moe_core.engine.context import Context
from moe_core.recipes import demo
from moe_core.settings import Study
from moe_core.store import files, store
from moe_core.store.artifact import Spec, StageOutput
from moe_core.study_file import dump_study, load_study
from moe_core.workspace import open_study
from pipelines.run.estimate import run_plan
from pipelines.run.plan import planned_tasks
from pipelines.run.status import states_of


def study_of(experts: int) -> Study:
    """The demo with so many experts and shards, without controls."""
    recipe = demo()
    source = recipe.source.model_copy(update={"shards": experts, "posts": 10 * experts})
    evaluation = recipe.evaluation.model_copy(update={"controls": False})
    partition = recipe.partition.model_copy(update={"experts": experts})
    return recipe.model_copy(update={"source": source, "evaluation": evaluation, "partition": partition})


def metadata_of(context: Context, stage: str) -> dict[str, object]:
    """What planning reads of an artifact."""
    if stage == "partition":
        members = {key: f"members of {key}" for key in context.experts}
        return {"members": members, "random_members": members, "sizes": [9] * len(members), "trunk": "", "pointer": ""}
    return {"splits": {"train": 9}, "snapshot": {}} if stage == "splits" else {}


def _empty(output: StageOutput, folder: Path) -> StageOutput:
    return output


def fill(study: Study, root: Path) -> int:
    """Commits every artifact of the study, empty. Returns their number."""
    count = 0
    for stage in open_study(study, root).planner.graph.usual:
        context = open_study(study, root)
        for key in context.planner.keys(stage):
            spec = context.planner.spec(stage, key)
            assert isinstance(spec, Spec), spec
            output = StageOutput(metadata_of(context, stage))
            context.store.make(spec, partial(_empty, output))
            count += 1
    return count


def seconds_of(root: Path) -> tuple[float, float]:
    """(seconds of status, seconds of the plan of a run), of processor time, the study read from its file."""
    started = time.process_time()
    context = open_study(load_study(root / "study.toml"), root)
    states = states_of(context)
    status = time.process_time() - started
    assert {state.state for state in states} == {"fresh"}, {(s.asset, s.state, s.why) for s in states[:3]}
    started = time.process_time()
    context = open_study(load_study(root / "study.toml"), root)
    run_plan(context, planned_tasks(context, None), force=False, workers=1)
    return status, time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    store.fsync = files.fsync = lambda path: None  # filling is not what is timed
    print(f"{'experts':>8} {'artifacts':>10} {'status':>9} {'ms each':>8} {'dry run':>9} {'ms each':>8}")
    each: dict[int, float] = {}
    for experts in options.experts:
        with tempfile.TemporaryDirectory() as folder:
            root, study = Path(folder), study_of(experts)
            (root / "study.toml").write_text(dump_study(study), "utf-8")
            count = fill(study, root)
            status, dry_run = (
                min(times) for times in zip(*(seconds_of(root) for _ in range(options.repeat)), strict=True)
            )
        each[experts] = 1000 * status / count
        print(
            f"{experts:8,} {count:10,} {status:7.2f} s {each[experts]:8.3f} {dry_run:7.2f} s "
            f"{1000 * dry_run / count:8.3f}",
            flush=True,
        )
    first, last = sorted(each)[-2:] if len(each) > 1 else (min(each), max(each))
    print(f"status, an artifact, {last:,} experts against {first:,}: {each[last] / each[first]:.2f} times")


if __name__ == "__main__":
    main()
