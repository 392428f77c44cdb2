"""takedowns.parquet, a document of the study: what was taken down, as salted hashes, so that no ingest brings it back.

The list has no names: it holds SHA-256 of salt and id or user. With the file, a candidate can still be tested.
"""

import hashlib
import io
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from moe_core.errors import BadSetting, CorruptArtifact
from moe_core.store.documents import Documents
from moe_core.store.hashing import content_hash
from moe_core.store.layout import NAMES

Kind = Literal["id", "user"]
LINES = "one id or user a line (.jsonl: as a JSON string; .json: a list of strings)"
MAX_ID = 512  # characters of an id that the store keeps: a longer one is rejected, and known by its beginning


@dataclass(frozen=True)
class Entry:
    """A post or a user that was taken down."""

    kind: Kind
    hash: str
    at: datetime
    shards: tuple[str, ...] = ()  # where its posts lay
    saw: tuple[str, ...] = ()  # networks trained on them: "expert:e003 <version>"
    done: bool = False  # nothing of it is left in the stores

    def adding(self, shards: Iterable[str], saw: Iterable[str]) -> "Entry":
        """The entry with more shards and networks."""
        return replace(self, shards=tuple(sorted({*self.shards, *shards})), saw=tuple(sorted({*self.saw, *saw})))


@dataclass(frozen=True)
class Takedowns:
    """The list of a study's takedowns."""

    salt: str = ""
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)

    @classmethod
    def load(cls, documents: Documents) -> "Takedowns":
        """Raises CorruptArtifact for another file: an unreadable list must not let posts back in."""
        try:
            return cls._parsed(documents, documents.read(NAMES.takedowns))
        except OSError as error:
            raise _unreadable(documents, error) from None

    @classmethod
    def record(cls, documents: Documents, ids: Iterable[str], users: Iterable[str]) -> "Takedowns":
        """Adds to the list in the store, and returns it; two processes at once lose nothing of each other."""
        ids, users, takedowns = list(ids), list(users), cls()

        def recorded(before: bytes | None) -> bytes | None:
            nonlocal takedowns
            takedowns = cls._parsed(documents, before).adding("id", ids).adding("user", users)
            return takedowns._bytes() if takedowns.entries else before

        documents.update(NAMES.takedowns, recorded)
        return takedowns

    def save(self, documents: Documents) -> None:
        """Merges this list into that in the store, which others may have changed meanwhile."""

        def merged(before: bytes | None) -> bytes:
            entries = dict(Takedowns._parsed(documents, before).entries)
            for key, entry in self.entries.items():
                there = entries.get(key, entry)
                entries[key] = entry.adding(there.shards, there.saw)
            return replace(self, entries=entries)._bytes()

        documents.update(NAMES.takedowns, merged)

    @classmethod
    def _parsed(cls, documents: Documents, data: bytes | None) -> "Takedowns":
        """Raises CorruptArtifact."""
        if data is None:
            return cls()
        try:
            # Not read_table: the threads of a scan hold the bytes for a while, and one that gives them back while the
            # interpreter ends aborts the process.
            with pq.ParquetFile(pa.BufferReader(data)) as file:
                table = file.read(use_threads=False)
            salt = table.schema.metadata[b"salt"].decode()
            rows = table.to_pylist()
            entries = [
                Entry(r["kind"], r["hash"], r["at"], tuple(r["shards"]), tuple(r["saw"]), r["done"]) for r in rows
            ]
        except (OSError, pa.ArrowException, KeyError, TypeError) as error:
            raise _unreadable(documents, error) from None
        return cls(salt, {(e.kind, e.hash): e for e in entries})

    def _bytes(self) -> bytes:
        """The list as a Parquet file."""
        schema = pa.schema(
            [
                ("kind", pa.string()),
                ("hash", pa.string()),
                ("at", pa.timestamp("us", "UTC")),
                ("shards", pa.list_(pa.string())),
                ("saw", pa.list_(pa.string())),
                ("done", pa.bool_()),
            ],
            metadata={"salt": self.salt},
        )
        rows = [vars(self.entries[key]) for key in sorted(self.entries)]
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)
        return file.getvalue()

    def hash(self, kind: Kind, text: str) -> str:
        text = text[:MAX_ID] if kind == "id" else text
        return hashlib.sha256(f"{self.salt}\0{kind}\0{text}".encode(errors="surrogatepass")).hexdigest()

    def holds(self, post_id: str | None, user: str | None = None) -> bool:
        """Whether a post was taken down, by its id or its user."""
        named: dict[Kind, str | None] = {"id": post_id, "user": user} if self.entries else {}
        return any(text and (kind, self.hash(kind, text)) in self.entries for kind, text in named.items())

    def adding(self, kind: Kind, texts: Iterable[str]) -> "Takedowns":
        """The list with more ids or users."""
        grown = replace(self, salt=self.salt or secrets.token_hex(16), entries=dict(self.entries))
        now = datetime.now(UTC)
        for text in texts:
            key = (kind, grown.hash(kind, text))
            grown.entries.setdefault(key, Entry(kind, key[1], now))
        return grown

    def note(self, kind: Kind, text: str, shards: Iterable[str], saw: Iterable[str]) -> None:
        """Adds to an entry where its posts lie and what was trained on them; it is not done until that is cleared."""
        key = (kind, self.hash(kind, text))
        entry = self.entries.get(key) or Entry(kind, key[1], datetime.now(UTC))
        self.entries[key] = replace(entry.adding(shards, saw), done=False)

    def shards_of(self, kind: Kind, text: str) -> tuple[str, ...]:
        """Where posts of an entry lay."""
        entry = self.entries.get((kind, self.hash(kind, text)))
        return entry.shards if entry else ()

    def finished(self) -> "Takedowns":
        return replace(self, entries={key: replace(entry, done=True) for key, entry in self.entries.items()})

    @property
    def pending(self) -> bool:
        """Whether a takedown was started and not finished."""
        return not all(entry.done for entry in self.entries.values())

    @property
    def saw(self) -> set[str]:
        """All networks that were trained on posts that are taken down now."""
        return {name for entry in self.entries.values() for name in entry.saw}

    def hash_of(self, shard: str) -> str:
        """Hash of what is taken down of a shard; empty where that is nothing."""
        of_shard = sorted(f"{kind} {hash}" for (kind, hash), entry in self.entries.items() if shard in entry.shards)
        return content_hash(of_shard) if of_shard else ""


def _unreadable(documents: Documents, error: Exception) -> CorruptArtifact:
    where = documents.where(NAMES.takedowns)
    return CorruptArtifact(f"{where} is not readable ({error}): restore it from a backup", where)


def lines_of(path: Path) -> list[str]:
    """The ids or users of a file, each once: lines; a `.json` list, or a `.jsonl` of one JSON string a line, for those
    with line ends or odd spaces. Raises BadSetting for a file that cannot be read or is empty."""
    kind = path.suffix.lower()
    try:
        text = path.read_text("utf-8-sig")
        if kind == ".json":
            names = json.loads(text)
        elif kind in (".jsonl", ".ndjson"):
            names = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            names = [line for line in (line.rstrip("\r") for line in text.split("\n")) if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise BadSetting(f"{path} is not readable ({error}): wanted {LINES}") from None
    if not isinstance(names, list) or any(isinstance(name, bool) or not isinstance(name, str | int) for name in names):
        raise BadSetting(f"{path} does not hold strings: wanted {LINES}")
    if not names:
        raise BadSetting(f"{path} is empty: wanted {LINES}")
    return list(dict.fromkeys(str(name) for name in names))
