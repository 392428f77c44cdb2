"""A backfill through the daemon of `hardmoe ui`: its webserver is asked for the runs, its daemon starts them.

`hardmoe ui` leaves its address in the folder of Dagster's instance. Runs are followed in the instance itself.
"""

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.engine.context import Context
from moe_core.processes import alive, this_process
from moe_core.store.files import write_text
from pipelines.instance import LAUNCHER, end_if_dead, home, opened, project_keys, reap
from pipelines.run.scheduler import (
    POLL_SECONDS,
    Event,
    Meanwhile,
    Poll,
    Running,
    Summary,
    ended,
    heard_later,
    is_fresh,
    undisturbed,
    use_workers,
)
from pipelines.run.status import error_of
from pipelines.run.task import Task, TaskResult

if TYPE_CHECKING:
    import dagster as dg

ADDRESS = "hardmoe-ui.json"  # in the folder of the instance
FOLLOW_SECONDS = 1.0
END_SECONDS = 30.0  # for canceled runs to be over
ANSWER_SECONDS = 60.0  # the webserver loads the study anew before it answers some questions
_HERE = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine is reached without a proxy
FOUND = """query { instance { daemonHealth { allDaemonStatuses { required healthy } } }
  repositoriesOrError { ... on RepositoryConnection { nodes {
    name location { name } assetNodes { assetKey { path } partitionDefinition { name } } } } } }"""
LAUNCH = """mutation($runs: [ExecutionParams!]!) { launchMultipleRuns(executionParamsList: $runs) { __typename
  ... on LaunchMultipleRunsResult { launchMultipleRunsResult { __typename
    ... on LaunchRunSuccess { run { runId } } ... on Error { message } } }
  ... on PythonError { message } } }"""
RELOAD = """mutation($location: String!) { reloadRepositoryLocation(repositoryLocationName: $location) { __typename
  ... on Error { message } } }"""
TERMINATE = (
    """mutation($runs: [String!]!) { terminateRuns(runIds: $runs, terminatePolicy: SAFE_TERMINATE) { __typename } }"""
)


@dataclass(frozen=True)
class Webserver:
    """Of a daemon that is well, and where in it the study's assets are."""

    address: str
    location: str
    repository: str
    process: str  # name of the process of `hardmoe ui`

    def launch(self, tasks: Sequence[Task]) -> list[str]:
        """Run ids, in order. Raises ValueError with what the webserver says against it."""
        done = _ask(self.address, LAUNCH, {"runs": [self._run(task) for task in tasks]})["launchMultipleRuns"]
        if "launchMultipleRunsResult" not in done:
            raise ValueError(f"Dagster's webserver launched nothing: {done.get('message')}")
        launched = done["launchMultipleRunsResult"]
        if refused := [one["message"] for one in launched if "run" not in one]:
            self.terminate([one["run"]["runId"] for one in launched if "run" in one])
            raise ValueError(f"Dagster's webserver did not launch {len(refused)} runs: {refused[0]}")
        return [one["run"]["runId"] for one in launched]

    def terminate(self, run_ids: Sequence[str]) -> None:
        _ask(self.address, TERMINATE, {"runs": list(run_ids)})

    def load_again(self) -> None:
        """For study.toml that was changed since the webserver read it."""
        done = _ask(self.address, RELOAD, {"location": self.location})["reloadRepositoryLocation"]
        if "message" in done:
            raise ValueError(f"Dagster's webserver cannot load the study again: {done['message']}")

    def _run(self, task: Task) -> dict[str, Any]:
        from assets.study import STUDY, key_of, study

        tags = {
            "dagster/partition": task.key,
            STUDY: study().name,
            LAUNCHER: f"{socket.gethostname()}/{self.process}",
        }
        return {
            "selector": {
                "repositoryLocationName": self.location,
                "repositoryName": self.repository,
                "jobName": "experts" if task.asset == "expert" else "__ASSET_JOB",
                "assetSelection": [{"path": key_of(task.asset).path}],
            },
            "runConfigData": json.dumps({"ops": {task.asset: {"config": {"force": task.force}}}}),
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        }


def remember(folder: Path, study_file: Path, address: str) -> None:
    """Leaves the address of the webserver that this process starts."""
    said = {"address": address, "process": this_process(), "study": str(study_file.absolute())}
    write_text(folder / ADDRESS, json.dumps(said))


def find(context: Context, folder: Path, study_file: Path) -> Webserver | None:
    """The webserver of `hardmoe ui` on the study, when it answers and all its daemons are well."""
    try:
        said = json.loads((folder / ADDRESS).read_text("utf-8"))
        if said["study"] != str(study_file.absolute()) or not alive(said["process"]):
            return None
        found = _ask(said["address"], FOUND, {})
        daemons = found["instance"]["daemonHealth"]["allDaemonStatuses"]
        if not all(one["healthy"] for one in daemons if one["required"]):
            return None
        for node in found["repositoriesOrError"].get("nodes", []):
            sets = {one["partitionDefinition"]["name"] for one in node["assetNodes"] if one["partitionDefinition"]}
            if f"{context.study.name}_experts" in sets:
                return Webserver(said["address"], node["location"]["name"], node["name"], said["process"])
    except (OSError, ValueError, KeyError):
        return None
    return None


def run_there(
    context: Context,
    server: Webserver,
    only: Sequence[tuple[str, str | None]],
    force: bool,
    on_event: Event,
    on_poll: Poll,
) -> Summary:
    """As `run_study`, by runs of the daemon, at once as many as Dagster's own limits allow. Ctrl-C cancels them."""
    import dagster as dg

    began = time.monotonic()
    home(context.root, use_workers(None, context.study.partition.experts))
    summary, running, meanwhile = Summary(), list[Running](), Meanwhile(context)
    with opened() as instance:
        reap(instance)
        project_keys(instance, context.study.name, [s.key for s in context.shards], context.experts)
        tasks = []
        for task in (Task(stage, key, force) for stage, key in only):
            if force or not is_fresh(context, instance, task):
                tasks.append(task)
                continue
            summary.fresh.append(task.name)
            on_event("fresh", task, "")
        with _cancelling(server, instance, running, summary):
            with heard_later():  # runs that nobody knows could not be canceled
                for task, run_id in zip(tasks, server.launch(tasks) if tasks else [], strict=True):
                    running.append(Running(task, run_id, time.monotonic()))
            while running:
                time.sleep(FOLLOW_SECONDS)
                gone = not alive(server.process)  # asked first: what it did until then is seen in the runs
                runs = {one.run_id: instance.get_run_by_id(one.run_id) for one in running}
                for run_id in [run_id for run_id, run in runs.items() if run and end_if_dead(instance, run)]:
                    runs[run_id] = instance.get_run_by_id(run_id)
                for one in list(running):
                    run = runs[one.run_id]
                    if run is None or run.is_finished:
                        running.remove(one)
                        answer = _answer(instance, run)
                        if gone and answer.error:
                            answer = TaskResult(f"`hardmoe ui` is gone: {answer.error}", died=True)
                        ended(summary, one, answer, meanwhile, instance, on_event)
                begun = {id for id, run in runs.items() if run and run.status == dg.DagsterRunStatus.STARTED}
                queued = [one.task.name for one in running if one.run_id not in begun]
                on_poll(
                    [one for one in running if one.run_id in begun], dict.fromkeys(queued, "waits for Dagster's daemon")
                )
    summary.seconds = time.monotonic() - began
    return summary


@contextmanager
def _cancelling(
    server: Webserver, instance: "dg.DagsterInstance", running: list[Running], summary: Summary
) -> Iterator[None]:
    """Ctrl-C cancels what is under way and what waits: nobody would follow it any more."""
    try:
        yield
    except KeyboardInterrupt:
        summary.interrupted = True
        with undisturbed():
            for one in running:
                (summary.stopped if _has_begun(instance, one.run_id) else summary.left).append(one.task.name)
            if running:
                with suppress(OSError, ValueError):  # it is gone, or ending: then so are its runs
                    server.terminate([one.run_id for one in running])
            deadline = time.monotonic() + END_SECONDS
            while running and time.monotonic() < deadline:
                for one in running:
                    if run := instance.get_run_by_id(one.run_id):
                        end_if_dead(instance, run)
                runs = [instance.get_run_by_id(one.run_id) for one in running]
                running[:] = [one for one, run in zip(running, runs, strict=True) if run and not run.is_finished]
                time.sleep(POLL_SECONDS)


def _has_begun(instance: "dg.DagsterInstance", run_id: str) -> bool:
    """Its process is at work, or was; one that waits in the queue, or is being started, has not."""
    run = instance.get_run_record_by_id(run_id)
    return run is not None and run.start_time is not None


def _answer(instance: "dg.DagsterInstance", run: "dg.DagsterRun | None") -> TaskResult:
    import dagster as dg

    if run is None:
        return TaskResult("its run was deleted")
    if run.status == dg.DagsterRunStatus.CANCELED:
        return TaskResult("canceled in Dagster")
    if run.status != dg.DagsterRunStatus.SUCCESS:
        return TaskResult(error_of(instance, run.run_id))
    made = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION).records
    said = made[-1].asset_materialization if made else None
    return TaskResult(reused=bool(said and said.metadata["reused"].value))


def _ask(address: str, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The data of an answer. Raises ValueError with the first error in it, OSError where nobody answers."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{address}/graphql", body, {"Content-Type": "application/json"})
    try:
        with _HERE.open(request, timeout=ANSWER_SECONDS) as answer:
            said = json.load(answer)
    except urllib.error.HTTPError as error:
        raise ValueError(f"{address} answers {error.code}: {error.read(2000).decode('utf-8', 'replace')}") from None
    if said.get("errors"):
        raise ValueError(f"{address}: {said['errors'][0]['message']}")
    found: dict[str, Any] = said["data"]
    return found
