"""Where Dagster's storage quotes a text: takedown's search."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import sqlalchemy as db
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
from dagster._core.storage.runs.schema import RunStorageSqlMetadata
from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata

from moe_core.data.traces import Traces
from moe_core.maintenance.mentions import mentions_in

EVENTS = 5000  # rows read at once


def find_places(instance: dg.DagsterInstance, traces: Traces, home: Path) -> list[str]:
    """Where Dagster's storage outside of the folder `home` quotes one of the texts: runs, tables, files."""
    parts = [instance.event_log_storage, instance.run_storage, instance.schedule_storage, instance.compute_log_manager]
    folders = {Path(folder) for part in parts if (folder := getattr(part, "_base_dir", None))}
    addresses = (str(getattr(part, "_conn_string", "")) for part in parts)
    folders |= {Path(address.removeprefix("sqlite:///")) for address in addresses if address.startswith("sqlite:///")}
    places = [f"run {run}" for run in find_runs(instance, traces)]
    for folder in sorted(folders):
        if not folder.resolve().is_relative_to(home.resolve()):
            places += mentions_in(folder, traces)
    return list(dict.fromkeys(places))


def find_runs(instance: dg.DagsterInstance, traces: Traces) -> list[str]:
    """Ids of runs, or names of tables, that quote one of the texts in a database on a server such as PostgreSQL.

    None where the databases are files: those are searched as files.
    """
    storage = instance.event_log_storage
    if not traces or storage.is_run_sharded or not isinstance(storage, SqlEventLogStorage):
        return []
    known = [SqlEventLogStorageMetadata, RunStorageSqlMetadata, ScheduleStorageSqlMetadata]
    places = set()
    with storage.index_connection() as connection:
        names = set(db.inspect(connection).get_table_names())
        for table in (table for metadata in known for table in metadata.sorted_tables if table.name in names):
            for row in _rows(connection, table):
                if any(traces.within_cell(cell) for cell in map(_as_bytes, row.values()) if cell is not None):
                    places.add(row.get("run_id") or row.get("last_run_id") or f"table {table.name}")
    return sorted(map(str, places))


def _as_bytes(cell: object) -> bytes | None:
    if isinstance(cell, str):
        return cell.encode("utf-8", "surrogatepass")
    return cell if isinstance(cell, bytes) else None


def _rows(connection: db.Connection, table: db.Table) -> Iterator[db.RowMapping]:
    """All rows of a table, EVENTS at once where they have a number."""
    query, last = db.select(table), 0
    if "id" not in table.c:
        yield from connection.execute(query).mappings()
        return
    while (
        rows := connection.execute(query.where(table.c.id > last).order_by(table.c.id).limit(EVENTS)).mappings().all()
    ):
        yield from rows
        last = rows[-1]["id"]
