"""Files that still name posts or users after a takedown: Dagster's, and what lies beside the stores."""

import glob
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from moe_core.data.traces import LOCKED_SECONDS, Traces, is_sqlite
from moe_core.engine.context import Context
from moe_core.stages.graph import GRAPH


def mentions(context: Context, traces: Traces) -> list[str]:
    """Files under the root and of Dagster that name one of the texts, relative to the root where they lie under it.

    Not searched: rows of posts and complete artifacts, which are searched by their ids; weights; the source's files.
    """
    if not traces:
        return []
    own = context.store.layout.dagster_home
    home = context.store.layout.used_dagster_home
    named = mentions_in(own, traces)
    if home.resolve() != own.resolve():
        named += mentions_in(home, traces)
    named += [name for path in _searched(context) for name in _named(path, traces)]
    return [name.removeprefix(f"{context.root}{os.sep}") for name in dict.fromkeys(named)]


def mentions_in(place: Path, traces: Traces) -> list[str]:
    """Files of a folder, or of a database, that name one of the texts. Overwrites what databases deleted first."""
    paths = place.rglob("*") if place.is_dir() else place.parent.glob(f"{glob.escape(place.name)}*")
    files = [path for path in sorted(paths) if path.is_file()]
    for path in files:
        if path.suffix in (".db", ".sqlite") and is_sqlite(path):
            _compact(path, traces)
    return [name for path in files for name in _named(path, traces)]


def may_mention(path: Path, traces: Traces) -> bool:
    """Whether a file names one of the texts, or cannot be searched."""
    try:
        return traces.occur_in(path) or (is_sqlite(path) and any(traces.rows_with_ids(path, exactly=True)))
    except sqlite3.Error:
        return True


def _named(path: Path, traces: Traces) -> list[str]:
    """The path, where the file names one of the texts; with the runs, where it is a database of Dagster's."""
    try:
        if not traces.occur_in(path):
            return []
        rows = list(traces.rows_with_ids(path)) if is_sqlite(path) else []
    except FileNotFoundError:  # a log of a database that was open
        return []
    except sqlite3.Error as error:
        return [f"{path} (cannot be searched: {error})"]
    runs = {str(value) for _, row in rows if (value := _text(row.get("run_id") or row.get("last_run_id")))}
    return [f"{path} (runs {', '.join(sorted(runs))})" if runs else str(path)]


def _text(cell: object) -> str:
    return cell.decode("utf-8", "replace") if isinstance(cell, bytes) else ""


def _compact(path: Path, traces: Traces) -> None:
    """Rewrites a database where deleted rows may still lie in it. One that others use now stays as it is."""
    log = path.with_name(f"{path.name}-wal")
    with suppress(sqlite3.Error, OSError), closing(sqlite3.connect(path, timeout=LOCKED_SECONDS)) as database:
        database.isolation_level = None
        (free,) = database.execute("PRAGMA freelist_count").fetchone()
        if free or traces.occur_in(path) or (log.exists() and log.stat().st_size):
            database.execute("PRAGMA secure_delete = ON")
            database.execute("VACUUM")
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _searched(context: Context) -> Iterator[Path]:
    """Files under the root that no other step of a takedown searched."""
    source, store = context.study.source, context.store
    table = os.path.join(source.uri, source.table) if source.table else ""
    theirs = [Path(text).resolve() for text in (source.uri, source.images, table) if text]
    # hashtags, which may be names, are not looked for: so artifacts that hold nothing of single posts are not searched
    skipped = {store.layout.dagster_home}
    if store.place is None:
        skipped |= {a.path for name, stage in GRAPH.items() if stage.post_ids is None for a in store.everything(name)}
    for name, folders, files in os.walk(context.root):
        folder = Path(name)
        folders[:] = [
            name
            for name in sorted(folders)
            if (folder / name) not in skipped
            and (folder / name).resolve() not in theirs
            and not (folder.suffix == ".lance" and name == "data")
        ]
        for name in sorted(files):
            path = folder / name
            if path.is_file() and path.suffix != ".safetensors" and path.resolve() not in theirs:
                yield path
