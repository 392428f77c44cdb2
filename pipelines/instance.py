"""Dagster's instance of a study: DAGSTER_HOME where the user has one, else the folder `dagster` in the study's root."""

import json
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from assets.runs import HOST, process_of
from moe_core.data.traces import Traces
from moe_core.processes import is_dead, pid_of
from moe_core.store.files import write_text
from moe_core.store.locks import exclusive
from pipelines.aliases import alias, shorten_temporary_folder
from pipelines.databases import AGAIN, damage, remove_empty
from pipelines.terminal import echo
from pipelines.ui.services import socket_prefix

if TYPE_CHECKING:
    import dagster as dg
    import sqlalchemy as db

SETTINGS = """# Written by hardmoe; yours to change.
telemetry:
  enabled: false
nux:
  enabled: false  # no invitation to a newsletter
concurrency:
  runs:
    max_concurrent_runs: 8
  pools:
    granularity: run
    default_limit: {workers}
run_monitoring:
  enabled: true
  start_timeout_seconds: 300
  free_slots_after_run_end_seconds: 300
"""
MISSING = {  # modules that an instance in PostgreSQL needs
    "dagster_postgres": "pip install 'hardmoe[postgres]'",
    "psycopg": "name the driver of dagster-postgres: postgresql+psycopg2://..., or scheme: postgresql+psycopg2",
}
LONGEST_HOME = 450  # bytes: SQLite opens paths of at most 504, of which Dagster adds 53
EVENTS = 5000  # read at once
HEARTBEAT_SECONDS = 45.0  # a daemon that runs reports each 30 s
LAST_SECONDS = 15.0  # for a daemon to end whose `hardmoe ui` was killed just now
NO_TELEMETRY = "DAGSTER_DISABLE_TELEMETRY"
GRPC_INFO = ".dagster/grpc_info"  # Dagster's tag: the code server that starts the run


def home(root: Path, workers: int) -> Path:
    """The folder of the instance, made where it is missing, and named in DAGSTER_HOME from here on."""
    folder = checked_home(root)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "dagster.yaml").exists():
        write_text(folder / "dagster.yaml", SETTINGS.format(workers=workers))
    shorten_temporary_folder()
    return _name(folder)


def checked_home(root: Path) -> Path:
    """The folder of the instance. Raises ValueError for one that is new and so deep that SQLite opens nothing in it."""
    folder = Path(os.environ.get("DAGSTER_HOME") or root / "dagster").absolute()
    size = len(os.fsencode(os.path.realpath(folder)))
    if size > LONGEST_HOME and not (folder / "dagster.yaml").exists():
        raise ValueError(
            f"{folder} has {size} bytes, and SQLite opens files for Dagster in folders of at most {LONGEST_HOME}: "
            "choose a shorter path, or name one in DAGSTER_HOME"
        )
    return folder


def _name(folder: Path) -> Path:
    """Names the folder in DAGSTER_HOME; one with a "?" by a link, since Dagster would open SQLite's files up to it."""
    folder = alias(folder) if "?" in str(folder) else folder
    os.environ["DAGSTER_HOME"] = str(folder)
    if telemetry_is_left_open(folder):
        os.environ[NO_TELEMETRY] = "by hardmoe"  # read by webserver and daemon
    return folder


def telemetry_is_left_open(folder: Path) -> bool:
    """Whether the user's dagster.yaml says nothing of telemetry, which Dagster takes for leave to send it."""
    import yaml

    try:
        said = yaml.safe_load((folder / "dagster.yaml").read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # `opened` says what is wrong with it
        return True
    of_telemetry = said.get("telemetry") if isinstance(said, dict) else None
    return not (isinstance(of_telemetry, dict) and "enabled" in of_telemetry)


def warn_of_telemetry() -> None:
    """Says in the log of a code server that the user started that its webserver and daemon send telemetry."""
    import logging

    folder = os.environ.get("DAGSTER_HOME")
    if folder and NO_TELEMETRY not in os.environ and telemetry_is_left_open(Path(folder)):
        logging.getLogger("hardmoe").warning(
            "Dagster sends telemetry: %s/dagster.yaml does not mention it. Add `telemetry: {enabled: false}` there, or "
            "set %s=1",
            folder,
            NO_TELEMETRY,
        )


@contextmanager
def opened() -> "Iterator[dg.DagsterInstance]":
    """The instance of DAGSTER_HOME. Raises ValueError where its dagster.yaml is wrong or its database is not there.

    Its data bases are made by one process at a time: Dagster does not see to that, and two that make them at once leave
    tables that nobody can open any more.
    """
    import dagster as dg

    try:
        home = _name(Path(os.environ["DAGSTER_HOME"]))
        with exclusive(home / ".opening.lock"):
            for path in remove_empty(home):
                echo(f"Dagster's database {path} was empty and has been recreated; {AGAIN}", err=True)
            instance = dg.DagsterInstance.get()
    except Exception as error:  # of YAML, Dagster, SQLAlchemy or the driver: all are the user's to mend
        if damaged := damage(Path(os.environ["DAGSTER_HOME"])):
            raise ValueError(damaged) from error
        why = " ".join(str(error.__cause__ or error).split())[:600]
        hints = (f" ({hint})" for name, hint in MISSING.items() if re.search(rf"module (named )?'?{name}\b", why))
        why += next(hints, "")
        raise ValueError(
            f"Dagster's instance of {os.environ.get('DAGSTER_HOME')}/dagster.yaml cannot be opened: {why}"
        ) from error
    with instance:
        try:
            yield instance
        except Exception as error:
            of_storage = type(error).__module__.startswith(("sqlalchemy", "dagster"))
            if of_storage and (damaged := damage(Path(os.environ["DAGSTER_HOME"]))):
                raise ValueError(damaged) from error
            raise


def hold_ui(port: int) -> int:
    """Takes the instance's UI for this process, until it ends or closes the file.

    Raises ValueError where another has it, or a daemon runs here that would start each run a second time, or the port
    is taken.
    """
    import fcntl

    path = Path(os.environ["DAGSTER_HOME"]) / ".ui.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"`hardmoe ui` runs on {path.parent} already: {path.read_text('utf-8')}; end it first, two daemons "
                "would start each run twice"
            ) from None
        _no_daemon_here(path.parent)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except (OSError, OverflowError) as error:
                raise ValueError(
                    f"port {port} of 127.0.0.1 cannot be used ({error}): choose another with --port"
                ) from None
    except ValueError:
        os.close(handle)
        raise
    os.truncate(handle, 0)
    os.write(handle, f"http://127.0.0.1:{port}, process {os.getpid()}".encode())
    return handle


def _no_daemon_here(folder: Path) -> None:
    """Raises ValueError where a daemon of the instance runs on this machine and does not end in a while."""
    deadline = time.monotonic() + LAST_SECONDS
    while found := daemons_here(folder):
        if time.monotonic() > deadline:
            raise ValueError(
                f"a daemon of {folder} runs on this machine already: process {', '.join(map(str, found))}; end it "
                "first, two daemons would start each run twice"
            )
        time.sleep(0.2)


def daemons_here(folder: Path) -> list[int]:
    """Processes of this machine that are Dagster's daemon on the instance; none where the system does not say."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            if not any(part == b"dagster._daemon" or part.endswith(b"dagster-daemon") for part in command[:4]):
                continue
            said = dict(part.partition(b"=")[::2] for part in (process / "environ").read_bytes().split(b"\0"))
        except OSError:  # it ended, or is another user's
            continue
        home = os.fsdecode(said.get(b"DAGSTER_HOME", b""))
        if home and os.path.realpath(home) == os.path.realpath(folder):
            found.append(int(process.name))
    return sorted(found)


def daemon_reported() -> float | None:
    """Seconds since a daemon of the instance last reported, on whatever machine; None where none can be running."""
    with opened() as instance:
        ages = [time.time() - beat.timestamp for beat in instance.get_daemon_heartbeats().values()]
    return min((age for age in ages if age < HEARTBEAT_SECONDS), default=None)


def project_keys(instance: "dg.DagsterInstance", study: str, shards: list[str], experts: list[str]) -> None:
    """Makes the instance's partition keys those of the study: the store is the truth, the keys only show it."""
    for name, keys in ((f"{study}_shards", shards), (f"{study}_experts", experts)):
        there = instance.get_dynamic_partitions(name)
        new = [key for key in keys if key not in there]
        if new:
            instance.add_dynamic_partitions(name, new)
        for gone in set(there) - set(keys):
            instance.delete_dynamic_partition(name, gone)


def reap(instance: "dg.DagsterInstance") -> list[str]:
    """Ends the runs that dead processes left, and frees their pool slots. Returns the runs' ids.

    A run that waits in the queue for a daemon is left to the next one.
    """
    import dagster as dg

    status = dg.DagsterRunStatus
    states = [status.QUEUED, status.NOT_STARTED, status.STARTING, status.STARTED, status.CANCELING]
    runs = instance.get_runs(dg.RunsFilter(statuses=states))
    return [run.run_id for run in runs if end_if_dead(instance, run)]


def end_if_dead(instance: "dg.DagsterInstance", run: "dg.DagsterRun") -> bool:
    """Ends the run if the process that carries it out, or was to start it, is gone from this machine."""
    import dagster as dg

    if run.is_finished or not (why := _why_dead(run)):
        return False
    waited = run.status in (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED)
    if waited or run.status == dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, message=why)
    else:
        instance.report_run_failed(run, message=why)
    instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return True


def _why_dead(run: "dg.DagsterRun") -> str:
    """What of a run's processes is gone; "" where nothing is, or it is another machine's."""
    import dagster as dg

    if name := process_of(run):
        ours = run.tags.get(HOST) == socket.gethostname()
        gone = f"process {pid_of(name)} is gone: killed, or its machine went down"
        return gone if ours and is_dead(name) else ""
    if run.parent_run_id:  # has the tags of the run that it repeats, until its own are written
        return ""
    if run.status in (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING):
        served = _code_server_of(run)
        if served and Path(served).parent.name.startswith(socket_prefix()) and not _answers(served):
            return "the code server that was to start it is gone"
    return ""


def _code_server_of(run: "dg.DagsterRun") -> str:
    """The socket of the code server that was asked to start a run; "" where it has a port, or none was asked."""
    with suppress(ValueError, AttributeError):
        return str(json.loads(run.tags.get(GRPC_INFO, "{}")).get("socket") or "")
    return ""


def _answers(served: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(served)
        except OSError:
            return False
    return True


def places_that_say(instance: "dg.DagsterInstance", traces: Traces, home: Path) -> list[str]:
    """Where Dagster's storage outside of the folder `home` says one of the texts: runs, tables, files."""
    from moe_core.maintenance.takedown import traces_in

    parts = [instance.event_log_storage, instance.run_storage, instance.schedule_storage, instance.compute_log_manager]
    places = {Path(folder) for part in parts if (folder := getattr(part, "_base_dir", None))}
    addresses = (str(getattr(part, "_conn_string", "")) for part in parts)
    places |= {Path(one.removeprefix("sqlite:///")) for one in addresses if one.startswith("sqlite:///")}
    found = [f"run {run}" for run in runs_that_say(instance, traces)]
    for place in sorted(places):
        if not place.resolve().is_relative_to(home.resolve()):
            found += traces_in(place, traces)
    return list(dict.fromkeys(found))


def runs_that_say(instance: "dg.DagsterInstance", traces: Traces | Iterable[str]) -> list[str]:
    """Ids of runs, or names of tables, that quote one of the texts in a database on a server such as PostgreSQL.

    None where they are files: those are searched as files.
    """
    import sqlalchemy as db
    from dagster._core.storage.event_log import SqlEventLogStorage
    from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
    from dagster._core.storage.runs.schema import RunStorageSqlMetadata
    from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata

    storage = instance.event_log_storage
    traces = traces if isinstance(traces, Traces) else Traces(traces)
    if not traces or storage.is_run_sharded or not isinstance(storage, SqlEventLogStorage):
        return []
    known = [SqlEventLogStorageMetadata, RunStorageSqlMetadata, ScheduleStorageSqlMetadata]
    found = set()
    with storage.index_connection() as connection:
        there = set(db.inspect(connection).get_table_names())
        for table in (table for metadata in known for table in metadata.sorted_tables if table.name in there):
            for row in _rows(connection, table):
                cells = [
                    cell.encode("utf-8", "surrogatepass") if isinstance(cell, str) else cell for cell in row.values()
                ]
                if any(isinstance(cell, bytes) and traces.within_cell(cell) for cell in cells):
                    found.add(row.get("run_id") or row.get("last_run_id") or f"table {table.name}")
    return sorted(map(str, found))


def _rows(connection: "db.Connection", table: "db.Table") -> "Iterator[db.RowMapping]":
    """All rows of a table, EVENTS at once where they have a number."""
    import sqlalchemy as db

    query, last = db.select(table), 0
    if "id" not in table.c:
        yield from connection.execute(query).mappings()
        return
    while (
        rows := connection.execute(query.where(table.c.id > last).order_by(table.c.id).limit(EVENTS)).mappings().all()
    ):
        yield from rows
        last = rows[-1]["id"]
