"""`--dry-run`: what would run and why, and what it takes, from what was measured before. Writes nothing.

An estimate comes from earlier artifacts of the same study: a network's seconds an image, where network and image size
are the same, times the images it will see; for other assets the seconds of Dagster's last record of the same partition,
else of the asset. What was not measured before is said to be so.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from moe_core.engine.context import Context
from moe_core.engine.stage import shown_as
from moe_core.stages.data.statistics import warnings_of
from moe_core.stages.experts.joint import JOINT
from moe_core.stages.graph import GRAPH
from moe_core.stages.training.cost import TRAINED
from moe_core.store.artifact import Artifact
from moe_core.store.hashing import content_hash
from moe_core.text import shown
from pipelines.cli.progress import as_one_says
from pipelines.run.scheduler import above, is_fresh, use_workers
from pipelines.run.status import State, existing_instance, failed_runs, state_of
from pipelines.run.task import Task

if TYPE_CHECKING:
    import dagster as dg

DECODERS = ("shared_decoder", "random_decoder")
BY_MEMBERS = ("expert", "random_expert", "separate_expert", *JOINT, *DECODERS)  # of a partition they read no more
ALIKE = ("expert", "random_expert", "separate_expert")  # one trains as fast as the other
RECORDS = 100  # of an asset, looked at for its last times


@dataclass(frozen=True)
class Cost:
    """Of one artifact, as measured before; None where nothing was."""

    seconds: float | None = None
    bytes: int | None = None
    gpu: bool | None = None  # whether a GPU was busy with it


NOTHING = Cost(0, 0)  # of what is there and recorded again


@dataclass(frozen=True)
class Step:
    """One run that is due."""

    asset: str
    key: str | None
    why: str
    cost: Cost
    may: bool = False  # what is there may prove to be what is wanted, once what it reads is made

    @property
    def name(self) -> str:
        return Task(self.asset, self.key).name


@dataclass(frozen=True)
class Outlook:
    """What a command would do."""

    steps: list[Step]
    fresh: int
    workers: int
    warnings: tuple[str, ...] = ()

    @property
    def unmeasured(self) -> list[str]:
        return [step.name for step in self.steps if step.cost.seconds is None]

    @property
    def least(self) -> "Outlook":
        """Without what may prove to be there."""
        return replace(self, steps=[step for step in self.steps if not step.may])

    @property
    def seconds(self) -> float:
        """From start to end with so many workers, of the steps that were measured before."""
        return makespan(self.steps, self.workers)

    @property
    def bytes(self) -> int:
        return sum(step.cost.bytes or 0 for step in self.steps)

    @property
    def gpu_hours(self) -> float:
        return sum(step.cost.seconds or 0 for step in self.steps if step.cost.gpu) / 3600

    def as_json(self) -> dict[str, Any]:
        """The estimate is at most that, and at least `at_least`."""
        rows = {False: list[Any](), True: list[Any]()}
        for step in self.steps:
            rows[step.may].append({"asset": step.asset, "key": step.key, "why": step.why} | asdict(step.cost))
        return {
            "will_run": rows[False],
            "may_run": rows[True],
            "fresh": self.fresh,
            "workers": self.workers,
            "warnings": list(self.warnings),
            "estimate": self._total() | {"at_least": self.least._total(), "not_measured_before": self.unmeasured},
        }

    def _total(self) -> dict[str, Any]:
        return {"seconds": round(self.seconds, 1), "bytes": self.bytes, "gpu_hours": round(self.gpu_hours, 4)}

    def as_lines(self) -> Iterator[str]:
        """What would run, why, with time and disk as measured before, and their sums."""
        for step in self.steps:
            took = "not measured" if step.cost.seconds is None else as_one_says(step.cost.seconds)
            size = "" if step.cost.bytes is None else f"{step.cost.bytes / 2**20:,.1f} MiB"
            why = f"may run: {step.why}" if step.may else step.why
            yield f"{step.name:28} {took:>12} {size:>12}  {shown(why, 4000)}"
        yield from (f"Warning: {line}" for line in self.warnings)
        least = self.least
        may = len(self.steps) - len(least.steps)
        yield f"{len(least.steps)} would run, " + (f"{may} may run, " if may else "") + f"{self.fresh} are fresh"
        if not self.steps:
            return
        unknown = len(self.unmeasured)
        if unknown == len(self.steps):
            yield "Time, disk and GPU hours: not measured before"
            return
        figures = [
            f"{as_one_says(one.seconds)} with {self.workers} at once, {one.bytes / 2**20:,.1f} MiB, "
            f"{one.gpu_hours:.2f} GPU hours"
            for one in ((least, self) if may else (self,))
        ]
        amount = f"at least {figures[0]}; at most {figures[1]}" if may else f"about {figures[0]}"
        yield f"From what was measured before: {amount}" + (f"; and {unknown} not measured before" if unknown else "")


def outlook(
    context: Context, tasks: Sequence[tuple[str, str | None]], force: bool = False, workers: int | None = None
) -> Outlook:
    """Of these tasks, each after those that it reads."""
    steps: list[Step] = []
    in_order = sorted(tasks, key=lambda task: list(GRAPH).index(task[0]))
    with existing_instance(context.root) as instance:
        failed = failed_runs(instance, context.study.name)
        for name, key in in_order:
            state = state_of(context, name, key, failed)
            if not force and _may_stay(context, state, steps):
                steps.append(Step(name, key, _if(context, name), measured(context, instance, name, key), may=True))
            elif why := _why(context, instance, state, steps, force):
                cost = NOTHING if state.state == "fresh" and not force else measured(context, instance, name, key)
                steps.append(Step(name, key, why, cost))
    count = use_workers(workers, context.study.partition.experts)
    doubts = warnings_of(context) if any(step.asset in TRAINED and step.cost != NOTHING for step in steps) else []
    return Outlook(steps, len(in_order) - len(steps), count, tuple(doubts))


def _may_stay(context: Context, state: State, steps: list[Step]) -> bool:
    """Whether it reads the partition, which is to be made first, and there is one that it may prove to be."""
    stage = GRAPH[state.asset]
    if state.state == "running" or state.asset not in BY_MEMBERS or not any(s.asset == "partition" for s in steps):
        return False
    with suppress(ValueError):
        context.plan(state.asset, state.key)
        return False  # it is known
    surely = {step.asset for step in steps if not step.may and step.cost != NOTHING} - {"partition"}
    if surely & {shown_as(name) for name in stage.reads}:
        return False
    if state.asset in DECODERS and context.study.decoder.mode == "refit":  # on the posts of each partition anew
        return False
    wanted = stage.code, content_hash(stage.settings(context.study)), context.version("trunk")
    there = context.store.versions(state.asset, state.key)
    return wanted in [(a.code, content_hash(a.settings), a.inputs.get("trunk")) for a in there]


def _if(context: Context, name: str) -> str:
    if name in DECODERS:
        return "if an expert is trained again"
    share = f"more than {100 * context.study.repartition.retrain_share:g} % of"
    return f"if {share} the posts of an expert changed" if name in JOINT else f"if {share} its posts changed"


UNRECORDED = "there, but not in Dagster's record: recorded again"


def _why(context: Context, instance: "dg.DagsterInstance | None", state: State, steps: list[Step], force: bool) -> str:
    """Why it runs, or "" where it does not."""
    if state.state == "running":
        return "another process makes it now: waited for"
    try:
        there = context.find(state.asset, state.key) is not None
    except ValueError:  # what it depends on is to be made first
        stage = GRAPH[state.asset]
        first = {shown_as(name) for name in stage.reads}
        due = list(dict.fromkeys(step.asset for step in steps if step.asset in first and step.cost != NOTHING))
        return f"follows from {', '.join(due)}" if due else state.why or state.state
    if force:
        return "forced"
    if not there:
        return {"failed": f"failed before: {state.why}"}.get(state.state, state.why or state.state)
    kept = GRAPH[state.asset].kept and context.basis is not context  # recorded again, at no cost
    if kept or (instance and is_fresh(context, instance, Task(state.asset, state.key))):
        return ""
    return state.why if state.asset == "partition" and state.why else UNRECORDED


def measured(context: Context, instance: "dg.DagsterInstance | None", name: str, key: str | None) -> Cost:
    earlier = _earlier(context, name, key)
    if name in TRAINED:
        return _of_network(context, name, key, earlier)
    last = earlier[-1] if earlier else None
    return Cost(_step_seconds(instance, name, key), _size(context, last), False)


def _of_network(context: Context, name: str, key: str | None, earlier: list[Artifact]) -> Cost:
    settings = json.loads(json.dumps(GRAPH[name].settings(context.study)))  # as a manifest has them
    like = [a for a in earlier if _manifest(a)["settings"].get("network") == settings["network"]]
    like = [a for a in like if "seconds" in a.metadata and a.path.stat().st_mtime > _resized(context)]
    if not like:
        return Cost()
    last = like[-1].metadata
    posts = (
        _posts(context, key)
        or last.get("training_posts")
        or sum(one["training_posts"] for one in last["trained"].values())
    )
    seconds = last["seconds"] / last["training_images"] * posts * settings["training"]["epochs"]
    return Cost(round(seconds, 1), _size(context, like[-1]), last["device"] == "cuda")


def _earlier(context: Context, name: str, key: str | None) -> list[Artifact]:
    """Artifacts like it, the most telling last: of the same partition before others, then the newest."""
    names = ALIKE if name in ALIKE else (name,)
    found = [a for one in names for a in context.store.everything(one) if "generation" not in a.metadata]
    return sorted(found, key=lambda a: (a.asset == name, a.key == key, a.path.stat().st_mtime))


def _posts(context: Context, key: str | None) -> int | None:
    """Training posts of an expert, where the partition is there."""
    if key is None:
        return None
    try:
        partition = context.find("partition")
    except ValueError:
        return None
    return int(partition.metadata["sizes"][context.experts.index(key)]) if partition else None


def _resized(context: Context) -> float:
    """Time of the last posts that had another image size than the study's: what was measured until then is not like."""
    size = context.study.data.image_size
    other = [a for a in context.store.everything("posts") if _manifest(a)["settings"].get("image_size") != size]
    return max((a.path.stat().st_mtime for a in other), default=0.0)


def _step_seconds(instance: "dg.DagsterInstance | None", name: str, key: str | None) -> float | None:
    """Of the last record of the same partition, else of the asset, that something was made for."""
    if instance is None:
        return None
    from assets.study import key_of

    found: dict[str | None, float] = {}
    for record in instance.fetch_materializations(key_of(name), limit=RECORDS).records:
        if (said := record.asset_materialization) is None:
            continue
        took, reused = said.metadata.get("step seconds"), said.metadata.get("reused")
        if took and reused and not reused.value:
            found.setdefault(said.partition, float(str(took.value)))
    return found.get(key, next(iter(found.values()), None))


def _size(context: Context, artifact: Artifact | None) -> int | None:
    if artifact is None:
        return None
    files = list(artifact.path.rglob("*"))
    if artifact.asset == "posts":  # its rows lie in tables that the shards share
        files += context.root.glob(f"*.lance/data/{artifact.key}.*.lance")
    return sum(path.stat().st_size for path in files if path.is_file())


def _manifest(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact.path / "artifact.json").read_text("utf-8"))
    return found


def makespan(steps: Sequence[Step], workers: int) -> float:
    """Seconds until the last step ends, when each starts once a worker is free and all it reads is made."""
    free = [0.0] * workers
    ends: dict[str, float] = {}
    for step in steps:
        ready = max((ends[name] for name in above(step.asset) if name in ends), default=0.0)
        worker = min(range(workers), key=lambda n: free[n])
        free[worker] = max(free[worker], ready) + (step.cost.seconds or 0.0)
        ends[step.asset] = max(ends.get(step.asset, 0.0), free[worker])
    return max(free)
