"""Answers in one file, written so that a killed command resumes: parts of some thousand rows in a folder beside the
file, each there whole or not at all and with the place where it ends; at the end they are joined.

The folder remembers what the answers are made from: the mixture, the options and the input. Another command does not
continue them.
"""

import csv
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moe_core.errors import BadSetting, CorruptArtifact, LockHeld
from moe_core.failpoints import failpoint
from moe_core.store.files import dead_parts, fsync, part_of, remove_atomically, write_text
from moe_core.store.hashing import with_checksum, without_checksum
from moe_core.store.locks import exclusive
from moe_core.tagging.answers import Asked, Rows
from moe_core.text import shown, utf8

SUFFIXES = (".parquet", ".csv", ".jsonl")
PART_ROWS, PART_SECONDS = 4096, 30.0  # a part is written when it has so many rows, or has waited so long
GROUP_ROWS = 65_536  # of a row group of the joined Parquet file
STATE, END = "state.json", b"hardmoe.end"
SCHEMA = pa.schema(
    [
        ("image", pa.string()),  # path of a file, id of a row
        ("table", pa.string()),  # the table or tar that has the row; null for a file
        ("status", pa.string()),  # answered, failed, skipped
        ("reason", pa.string()),  # null where it was answered
        ("expert", pa.string()),
        ("expert_published", pa.bool_()),
        ("tags", pa.list_(pa.string())),
        ("p", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True)
class Done:
    """How far the parts reach: behind `row` records of the input's part `unit`, and the records up to there."""

    unit: int = 0
    row: int = 0
    answered: int = 0
    failed: int = 0
    skipped: int = 0
    kept: int = 0  # sidecars that were there already, and say something else

    @property
    def records(self) -> int:
        return self.answered + self.failed + self.skipped

    def after(self, rows: Rows, kept: int) -> "Done":
        last = rows.records[-1]
        return replace(
            self,
            unit=last.unit,
            row=last.row,
            answered=self.answered + rows.answered,
            failed=self.failed + rows.failed,
            skipped=self.skipped + rows.skipped,
            kept=self.kept + kept,
        )


def check_name(out: Path) -> None:
    """Raises BadSetting for a name whose format is not known, or in no folder."""
    if out.suffix not in SUFFIXES:
        raise BadSetting(f"--out {shown(out, 300)}: wanted a name that ends in {', '.join(SUFFIXES)}")
    if out.is_dir() or not out.absolute().parent.is_dir():
        why = "is a folder" if out.is_dir() else "its folder does not exist"
        raise BadSetting(f"--out {shown(out, 300)}: {why}; name a file")


class Output:
    """The file and its parts, held by this process alone while inside."""

    def __init__(self, out: Path, force: bool = False) -> None:
        self.out, self.force = out, force
        self.folder = out.with_name(f".{out.name}.parts")
        self.done = Done()
        self._parts = 0
        self._rows: list[pa.Table] = []
        self._hashtags: pa.Array | None = None
        self._written = time.monotonic()
        self._held = ExitStack()

    def __enter__(self) -> "Output":
        check_name(self.out)
        for left in dead_parts(self.folder.absolute().parent):
            shutil.rmtree(left, ignore_errors=True)
        self.folder.mkdir(exist_ok=True)
        try:
            self._held.enter_context(exclusive(self.folder / "lock", wait=False))
        except LockHeld:
            raise LockHeld(
                f"another process writes {shown(self.out, 300)}: wait until it has ended, or choose another --out",
                self.folder,
            ) from None
        if self.force:
            (self.folder / STATE).unlink(missing_ok=True)
        if not self.under_way:
            for path in self.folder.iterdir():
                if path.name != "lock":
                    path.unlink()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not (self.folder / STATE).exists():  # nothing was begun
            remove_atomically(self.folder)
        self._held.close()

    @property
    def under_way(self) -> bool:
        """Whether a command was stopped here before."""
        return (self.folder / STATE).exists()

    def begin(self, made_of: Mapping[str, Any]) -> Done:
        """Where to go on. Raises BadSetting for a file that is there already, and for parts of another command."""
        if not self.under_way:
            if self.out.exists() and not self.force:
                raise BadSetting(
                    f"{shown(self.out, 300)} is there already: choose another --out, or replace it with --force"
                )
            write_text(self.folder / STATE, json.dumps(with_checksum(dict(made_of))))
            return self.done
        try:
            before = without_checksum((self.folder / STATE).read_bytes())
        except ValueError as error:
            raise CorruptArtifact(f"{self.folder / STATE} is damaged ({error}): begin again with --force") from None
        if changed := [name for name in {**before, **made_of} if before.get(name) != made_of.get(name)]:
            was = ", ".join(
                f"{name} was {shown(json.dumps(before.get(name)), 80)}, is {shown(json.dumps(made_of.get(name)), 80)}"
                for name in changed
            )
            raise BadSetting(
                f"{shown(self.out, 300)} was begun by another command ({was}): repeat that one to finish it, or begin "
                "again with --force"
            )
        self._parts = len(self._files())
        if self._parts:
            last = pq.read_schema(self._file(self._parts - 1)).metadata[END]
            self.done = Done(**json.loads(last))
        return self.done

    def add(self, rows: Rows, asked: Asked, kept: int = 0) -> None:
        """Some more rows; a part is written where there are enough."""
        if self._hashtags is None:
            self._hashtags = pa.array(asked.bundle.hashtags, pa.string())
        self._rows.append(table_of(rows, self._hashtags, asked.bundle.published))
        self.done = self.done.after(rows, kept)
        waits = time.monotonic() - self._written
        if sum(len(table) for table in self._rows) >= PART_ROWS or waits >= PART_SECONDS:
            self._write_part()

    def _write_part(self) -> None:
        if self._rows:
            path = self._file(self._parts)
            table = pa.concat_tables(self._rows).replace_schema_metadata({END: json.dumps(asdict(self.done))})
            pq.write_table(table, part_of(path))
            fsync(part_of(path))
            part_of(path).replace(path)
            failpoint("predict.part", path)
            self._parts, self._rows = self._parts + 1, []
        self._written = time.monotonic()

    def finish(self, asked: Asked) -> None:
        """Joins the parts to the file, in one move, and removes them."""
        self._write_part()
        part = part_of(self.out)
        try:
            {".parquet": self._parquet, ".csv": self._csv, ".jsonl": self._jsonl}[self.out.suffix](part, asked)
            fsync(part)
            failpoint("predict.joined", self.out)
            part.replace(self.out)
            failpoint("predict.renamed", self.out)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        remove_atomically(self.folder)

    def _parquet(self, path: Path, asked: Asked) -> None:
        about = {"hardmoe": json.dumps({"mixture": asked.bundle.folder.name, "answer": asked.answer})}
        with pq.ParquetWriter(path, SCHEMA.with_metadata(about)) as writer:
            waiting = list[pa.Table]()
            for table in self._tables():
                waiting.append(table)
                if sum(map(len, waiting)) >= GROUP_ROWS:
                    writer.write_table(pa.concat_tables(waiting))
                    waiting = []
            if waiting:
                writer.write_table(pa.concat_tables(waiting))

    def _csv(self, path: Path, asked: Asked) -> None:
        """Hashtags, and their p, with spaces between."""
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(SCHEMA.names)
            for table in self._tables():
                tags, p = pc.binary_join(table["tags"], " ").to_pylist(), table["p"].to_pylist()
                texts = [None if p_S is None else " ".join(f"{each:.5g}" for each in p_S) for p_S in p]
                rest = [table[name].to_pylist() for name in SCHEMA.names[:-2]]
                writer.writerows(zip(*rest, tags, texts, strict=True))

    def _jsonl(self, path: Path, asked: Asked) -> None:
        """The documents of --json, one a line."""
        with open(path, "w", encoding="utf-8") as file:
            for table in self._tables():
                for row in table.to_pylist():
                    file.write(json.dumps(_document(row, asked), ensure_ascii=False) + "\n")

    def _tables(self) -> Iterator[pa.Table]:
        for number in range(self._parts):
            yield pq.read_table(self._file(number), partitioning=None).replace_schema_metadata(None)

    def _files(self) -> list[Path]:
        for left in self.folder.glob(".*.part"):  # of a process that was killed
            with suppress(FileNotFoundError):
                left.unlink()
        return sorted(self.folder.glob("[0-9]*.parquet"))

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:08d}.parquet"


def table_of(rows: Rows, hashtags: pa.Array, published: Mapping[str, bool]) -> pa.Table:
    """The rows as the file has them, given all the mixture's hashtags and which experts are published."""
    status, reason, answered = list[str](), list[str | None](), np.zeros(len(rows.records), bool)
    for place, (record, error) in enumerate(zip(rows.records, rows.errors, strict=True)):
        answered[place] = not record.skipped and not error
        status.append("skipped" if record.skipped else "failed" if error else "answered")
        reason.append(utf8(record.skipped or error) or None)
    names = [utf8(record.name) for record in rows.records]
    tables = [utf8(record.table) or None for record in rows.records]
    keep_MS = rows.keep_MS
    counts = np.zeros(len(rows.records), np.int32)
    counts[answered] = keep_MS.sum(1)
    offsets = pa.array(np.concatenate([[0], counts.cumsum()]).astype(np.int32), mask=np.append(~answered, False))
    experts: list[str | None] = [None] * len(names)
    of_published: list[bool | None] = [None] * len(names)
    for place, expert in zip(np.flatnonzero(answered).tolist(), rows.experts, strict=True):
        experts[place], of_published[place] = expert, published[expert]
    columns = [
        *(names, tables, status, reason, experts, of_published),
        pa.ListArray.from_arrays(offsets, hashtags.take(pa.array(rows.tag_MS[keep_MS]))),
        pa.ListArray.from_arrays(offsets, pa.array(rows.p_MS[keep_MS], pa.float32())),
    ]
    return pa.table(columns, schema=SCHEMA)


def _document(row: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    about = {"image": row["image"]} | ({"table": row["table"]} if row["table"] else {})
    if row["status"] != "answered":
        return about | {"skipped" if row["status"] == "skipped" else "error": row["reason"]}
    tags = [{"tag": tag, "p": round(p, 5)} for tag, p in zip(row["tags"], row["p"], strict=True)]
    how = {"expert": row["expert"], "expert_published": row["expert_published"], "answer": asked.answer}
    return about | how | {"tags": tags}
