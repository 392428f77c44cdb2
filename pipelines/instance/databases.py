"""Dagster's SQLite files in the folder of an instance: which of them is damaged, and what to do then."""

import sqlite3
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
from dagster._core.storage.runs.schema import RunStorageSqlMetadata
from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata

AGAIN = "`hardmoe run` then records what exists again, and trains nothing"
FILES = {  # that Dagster opens for every command, with their tables
    "history/runs.db": RunStorageSqlMetadata.tables,
    "history/runs/index.db": SqlEventLogStorageMetadata.tables,
    "schedules/schedules.db": ScheduleStorageSqlMetadata.tables,
}


def remove_empty(home: Path) -> list[Path]:
    """Removes files without a table and returns them. A program leaves one where a database was deleted while open.

    Dagster creates the tables of a file that is not there, and trusts one that is."""
    removed = []
    for name in FILES:
        path = home / name
        try:
            if path.is_file() and not _tables(path):
                path.unlink()  # and SQLite drops what it kept beside it
                removed.append(path)
        except (sqlite3.Error, OSError):  # `damage` reports it when Dagster cannot open it
            continue
    return removed


def damage(home: Path) -> str:
    """What is wrong with the files and what to do; "" where nothing is. Reads them whole."""
    for name, tables in FILES.items():
        path = home / name
        if not path.exists():
            continue
        try:
            wrong = _wrong(path, tables)
        except (sqlite3.Error, OSError) as error:
            if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                continue
            wrong = str(error)
        if wrong:
            return (
                f"Dagster's database {path} is damaged ({wrong}): move it away while nothing runs on the study; {AGAIN}"
            )
    return ""


def _wrong(path: Path, tables: Collection[str]) -> str:
    if not path.is_file():
        return "it is not a file"
    if missing := sorted(set(tables) - _tables(path)):
        return f"it has no table {', '.join(missing)}; of an older Dagster: `dagster instance migrate`"
    with closing(_open(path)) as database:
        (result,) = database.execute("PRAGMA quick_check(1)").fetchone()
    return "" if result == "ok" else " ".join(str(result).split())


def _tables(path: Path) -> set[str]:
    with closing(_open(path)) as database:
        return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _open(path: Path) -> sqlite3.Connection:
    """Opens a file for reading. A read-only connection would leave SQLite's `-wal` and `-shm` behind."""
    return sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=1.0)
