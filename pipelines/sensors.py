"""Sensors: what starts by itself. All are stopped until someone starts them: a surprise of runs costs money."""

import json
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from assets.study import SHARDS, STUDY, root, study

if TYPE_CHECKING:
    from moe_core.engine.context import Context

LOOK_SECONDS = 60
READ_SECONDS = 20.0  # that a tick waits for new files to be read; Dagster gives up a tick after 60
ALERT_SECONDS = 30  # for the command: the daemon waits for it


@dg.sensor(
    job_name="ingest",
    minimum_interval_seconds=LOOK_SECONDS,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Looks for new and changed files in the source, and ingests each in a run of its own.",
)
def new_shards(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """A shard that is in the store already, as it is now, is left alone: `hardmoe run` may have ingested it.

    A new file is read to be told apart, which may take longer than a tick lives: it goes on in a thread beside the
    ticks, which look again once it has ended.
    """
    work = opened_in_time()
    if work is None:
        since = time.strftime("%H:%M:%S", time.localtime(_looks[root()].began))
        return dg.SensorResult(skip_reason=f"new or changed files are read since {since}: the next look asks again")
    known = set(context.instance.get_dynamic_partitions(str(SHARDS.name)))
    new = [shard.key for shard in work.shards if shard.key not in known]
    missing = [shard for shard in work.shards if work.find("posts", shard.key) is None]
    waiting = [f"left out until it can be read: {file.why}" for file in work.planner.state.unready]
    for line in waiting:
        context.log.warning(line)
    return dg.SensorResult(
        # a run key that was used once is not used again: one run a version, also when it fails
        run_requests=[
            dg.RunRequest(f"{shard.key}-{work.version('posts', shard.key)}", partition_key=shard.key)
            for shard in missing
        ],
        dynamic_partitions_requests=[SHARDS.build_add_request(new)] if new else [],
        skip_reason=None if missing else "; ".join([f"all {len(work.shards)} shards are ingested", *waiting]),
    )


class Look:
    """The study with the shards of its source, found in a thread of its own."""

    def __init__(self) -> None:
        self.began = time.time()
        self.work: Context | None = None
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._find, daemon=True)
        self.thread.start()

    def _find(self) -> None:
        from moe_core.workspace import open_study

        try:
            self.work = open_study(study(), root(), remember=True)
            _ = self.work.shards
        except Exception as error:
            self.error = error


_looks: dict[Path, Look] = {}  # under way, of each study


def opened_in_time(deadline: float | None = None) -> "Context | None":
    """The study as it is now; None where its files are still read at the deadline. One look is under way at a time."""
    deadline = deadline or time.monotonic() + READ_SECONDS
    while True:
        earlier = root() in _looks
        look = _looks[root()] if earlier else Look()
        _looks[root()] = look
        look.thread.join(max(0.0, deadline - time.monotonic()))
        if look.thread.is_alive():
            return None
        del _looks[root()]
        if earlier:  # files may have changed since: what it read is remembered
            continue
        if look.error:
            raise look.error
        return look.work


@dg.run_failure_sensor(
    minimum_interval_seconds=LOOK_SECONDS,
    default_status=dg.DefaultSensorStatus.STOPPED,
    monitor_all_code_locations=True,  # runs of `hardmoe run` belong to none
    description="Tells the command in [alerts] of study.toml of each failed run, as JSON on its standard input.",
)
def alert(context: dg.RunFailureSensorContext) -> None:
    """A command that fails or takes too long fails the tick, which the UI shows; the next failure is told again."""
    from pipelines.run.status import error_of

    run = context.dagster_run
    command = study().alerts.command
    if not command or run.tags.get(STUDY, study().name) != study().name:
        return
    if run.status != dg.DagsterRunStatus.FAILURE:  # canceled since: something came that changed its plan
        return
    said = {
        "study": study().name,
        "root": str(root()),
        "assets": sorted(key.path[-1] for key in run.asset_selection or ()),
        "partition": run.tags.get("dagster/partition"),
        "run": run.run_id,
        "error": error_of(context.instance, run.run_id),
    }
    try:
        done = subprocess.run(
            command, input=json.dumps(said), capture_output=True, text=True, cwd=root(), timeout=ALERT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise dg.Failure(f"alerts.command {list(command)}: {error}") from error
    if done.returncode:
        raise dg.Failure(f"alerts.command {list(command)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")


SENSORS = [new_shards, alert]
