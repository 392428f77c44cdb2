"""Sensors. All are stopped until someone starts them: unexpected runs cost money."""

import json
import subprocess
import threading
import time
from pathlib import Path

import dagster as dg

from assets.study import STUDY, project_keys, root, study
from moe_core.engine.context import Context
from moe_core.workspace import open_study
from pipelines.run.status import error_of

INTERVAL_SECONDS = 60
READ_SECONDS = 20.0  # a tick waits so long for new files to be read; Dagster gives up a tick after 60
ALERT_SECONDS = 30  # limit of the command, for which the daemon waits


@dg.sensor(
    job_name="ingest",
    minimum_interval_seconds=INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Finds new and changed files of the source, and ingests each in a run of its own.",
)
def new_shards(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Requests a run for each shard that the store does not have as it is now; `hardmoe run` may have ingested it.

    A new file is read to learn its content hash, which may take longer than a tick lives: a thread does so beside the
    ticks, which read the source again once it has ended.
    """
    work = opened_in_time()
    if work is None:
        since = time.strftime("%H:%M:%S", time.localtime(scans[root()].began))
        return dg.SensorResult(skip_reason=f"new or changed files are being read since {since}")
    project_keys(context.instance, work.study.name, [shard.key for shard in work.shards], work.experts)
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
        skip_reason=None if missing else "; ".join([f"all {len(work.shards)} shards are ingested", *waiting]),
    )


class Scan(threading.Thread):
    """Reads the study with the shards of its source."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.began = time.time()
        self.work: Context | None = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.work = open_study(study(), root(), remember=True)
            _ = self.work.shards
        except Exception as error:
            self.error = error


scans: dict[Path, Scan] = {}  # under way, by the study's root


def opened_in_time() -> Context | None:
    """The study as it is now; None where its files are still being read after a while. One scan runs at a time."""
    deadline = time.monotonic() + READ_SECONDS
    while True:
        earlier = root() in scans
        scan = scans[root()] if earlier else Scan()
        scans[root()] = scan
        scan.join(max(0.0, deadline - time.monotonic()))
        if scan.is_alive():
            return None
        del scans[root()]
        if earlier:  # files may have changed since; their content hashes are remembered
            continue
        if scan.error:
            raise scan.error
        return scan.work


@dg.run_failure_sensor(
    minimum_interval_seconds=INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.STOPPED,
    monitor_all_code_locations=True,  # runs of `hardmoe run` belong to none
    description="Runs the command in [alerts] of study.toml for each failed run, with JSON on its standard input.",
)
def alert(context: dg.RunFailureSensorContext) -> None:
    """A command that fails or takes too long fails the tick, which the UI shows; the next failed run has its own."""
    run = context.dagster_run
    command = study().alerts.command
    if not command or run.tags.get(STUDY, study().name) != study().name:
        return
    if run.status != dg.DagsterRunStatus.FAILURE:  # canceled since, because its inputs changed
        return
    report = {
        "study": study().name,
        "root": str(root()),
        "assets": sorted(key.path[-1] for key in run.asset_selection or ()),
        "partition": run.tags.get("dagster/partition"),
        "run": run.run_id,
        "error": error_of(context.instance, run.run_id),
    }
    try:
        done = subprocess.run(
            command, input=json.dumps(report), capture_output=True, text=True, cwd=root(), timeout=ALERT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise dg.Failure(f"alerts.command {list(command)}: {error}") from error
    if done.returncode:
        raise dg.Failure(f"alerts.command {list(command)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
