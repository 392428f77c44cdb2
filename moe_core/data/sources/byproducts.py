"""Files beside data that are no data: logs of table formats, caches and indices. And files of formats not read."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from moe_core.data.sources.files import File, file_system, is_remote, local, opened
from moe_core.errors import BadSource

ABOVE = 3  # folders above a source that are searched: a part of a table, or its data/, may be given
# of Hugging Face's datasets
CACHE = re.compile(r"cache-[0-9a-z]+(_\d+_of_\d+)?\.arrow|indices.*\.arrow", re.IGNORECASE)
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
TO_LINES = "`jq -c '.[]' posts.json > posts.jsonl`"
UNPACK = "unpack it and give the folder or file that comes out"
FOREIGN = {
    (".zip", ".7z", ".rar"): ("an archive", UNPACK),
    tuple(f".tar{suffix}" for suffix in COMPRESSED[1:]): ("a compressed tar", "unpack it to a .tar or .tar.gz"),
    tuple(table + suffix for table in TABLES for suffix in COMPRESSED): ("a compressed table", UNPACK),
    (".json",): ("one JSON document", f"write one object a line, for example with {TO_LINES}"),
    (".xlsx", ".xls", ".ods"): ("a spreadsheet", "save it as CSV"),
    (".sqlite", ".sqlite3", ".db", ".duckdb"): ("a database", "export its table to Parquet or CSV"),
    (".h5", ".hdf5", ".npz", ".npy", ".mat", ".pkl", ".pickle", ".pt"): ("an array file", "export it to Parquet"),
    (".tfrecord", ".tfrecords", ".avro", ".orc", ".mds", ".beton"): ("a record file", "export it to Parquet or tars"),
}


def foreign(path: Path | str) -> str | None:
    """A line on a file whose name tells a format that is not read, with what to do; None for others."""
    name = str(path).lower()
    kind, remedy = next((about for suffixes, about in FOREIGN.items() if name.endswith(suffixes)), ("", ""))
    return f"{path} is {kind}, which is not read: {remedy}" if kind else None


def refuse_tables(uri: str, files: Sequence[File]) -> None:
    """Raises BadSource where files belong to a Delta, Iceberg or Hudi table, whose log says which of them count.

    A single file that is named is read as it is.
    """
    if [file.path for file in files] in ([uri], [str(local(uri))] if not is_remote(uri) else []):
        return
    for folder in _folders(uri, files):
        names = _names(folder)
        kind = next((name for name, mark in (("Delta", "_delta_log"), ("Hudi", ".hoodie")) if mark in names), None)
        if not kind and "metadata" in names:
            below = _names(f"{folder}/metadata")
            kind = "Iceberg" if any(n.endswith(".metadata.json") or n == "version-hint.text" for n in below) else None
        if kind:
            how = {
                "Delta": f"in DuckDB: COPY (FROM delta_scan('{folder}')) TO 'posts.parquet'",
                "Iceberg": f"in DuckDB: COPY (FROM iceberg_scan('{folder}')) TO 'posts.parquet'",
                "Hudi": "with Spark",
            }[kind]
            raise BadSource(
                f"{folder} is a{'n' * (kind == 'Iceberg')} {kind} table: its files hold deleted rows too, "
                f"so they are not read as they lie. Export its current rows ({how}) and give that file"
            )


def _folders(uri: str, files: Sequence[File]) -> Iterator[str]:
    """The folders of the files and those above them, each once."""
    seen = set[str]()
    for file in files:
        scheme = file.path.split("://")[0] + "://" if is_remote(file.path) else ""
        path = PurePosixPath(file.path.removeprefix(scheme))
        inside = file.name.count("/") + 1
        for folder in list(path.parents)[: inside + ABOVE]:
            if (name := f"{scheme}{folder}") in seen or str(folder) in (".", "/"):
                break
            seen.add(name)
            yield name


def _names(folder: str) -> set[str]:
    """Names in a folder; none where it cannot be listed."""
    try:
        if not is_remote(folder):
            return {path.name for path in Path(folder).iterdir()}
        from pyarrow import fs

        system, path = file_system(folder)
        return {info.base_name for info in system.get_file_info(fs.FileSelector(path, allow_not_found=True))}
    except (OSError, ValueError):
        return set()


def of_saved_datasets(uri: str, files: Sequence[File]) -> list[File]:
    """Arrow files without caches; where Hugging Face's `save_to_disk` wrote them, those that its state.json names.

    Raises BadSource for a named file that is missing, and for rows that an index file picks.
    """
    if [file.path for file in files] == [uri]:
        return list(files)
    by_folder: dict[str, list[File]] = {}
    for file in files:
        by_folder.setdefault(file.path.rpartition("/")[0], []).append(file)
    kept: list[File] = []
    for folder, here in by_folder.items():
        above, _, base = folder.rpartition("/")
        splits = _json(f"{above}/dataset_dict.json").get("splits")
        if isinstance(splits, list) and base not in splits:
            continue
        state = _json(f"{folder}/state.json")
        named = [str(entry.get("filename")) for entry in state.get("_data_files") or () if isinstance(entry, dict)]
        if not named:
            kept += [file for file in here if not CACHE.fullmatch(file.name.rpartition("/")[2])]
            continue
        if state.get("_indices_data_files") or state.get("_indices_files"):
            raise BadSource(
                f"{folder}/state.json picks rows by an index file, which is not read: save the data set again after "
                "flatten_indices()"
            )
        by_name = {file.path.rpartition("/")[2]: file for file in here}
        if missing := [name for name in named if name not in by_name]:
            raise BadSource(f"{folder}/state.json names {', '.join(missing[:3])}, which are missing: copy them again")
        kept += [by_name[name] for name in dict.fromkeys(named)]
    return kept


def _json(path: str) -> dict[str, Any]:
    """An object in a small JSON file; empty where there is none."""
    try:
        with opened(path) as file:
            document = json.loads(file.read())
        return document if isinstance(document, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}
