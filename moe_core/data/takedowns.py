"""forgotten.parquet in the study's root: what was taken down, as salted hashes, so that no ingest brings it back.

The list names nobody: it holds SHA-256 of salt and id or user. Who has the file and a candidate can still test it.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from moe_core.store.files import fsync, part_of
from moe_core.store.hashing import content_hash
from moe_core.store.layout import Layout
from moe_core.store.locks import exclusive

Kind = Literal["id", "user"]
MAX_ID = 512  # characters of an id that the store keeps: a longer one is rejected, and known by its beginning


@dataclass(frozen=True)
class Entry:
    """A post or a user that was taken down."""

    kind: Kind
    hash: str
    at: datetime
    shards: tuple[str, ...] = ()  # where its posts lay
    saw: tuple[str, ...] = ()  # networks made from them: "expert:e003 <version>"
    done: bool = False  # nothing of it is left in the stores


@dataclass(frozen=True)
class Forgotten:
    """The list."""

    salt: str = ""
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)

    @classmethod
    def load(cls, root: Path) -> "Forgotten":
        """Raises ValueError for a file that is not one: an unreadable list must not let posts back in."""
        path = Layout(root).takedowns
        if not path.exists():
            return cls()
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            salt = table.schema.metadata[b"salt"].decode()
            rows = table.to_pylist()
            entries = [
                Entry(r["kind"], r["hash"], r["at"], tuple(r["shards"]), tuple(r["saw"]), r["done"]) for r in rows
            ]
        except (OSError, pa.ArrowException, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not readable ({error}): restore it from a backup") from None
        return cls(salt, {(e.kind, e.hash): e for e in entries})

    @classmethod
    def begin(cls, root: Path, ids: Iterable[str], users: Iterable[str]) -> "Forgotten":
        """The list on the disk with more in it. Of two at once neither loses what the other adds."""
        with exclusive(Layout(root).takedowns_lock):
            book = cls.load(root).adding("id", ids).adding("user", users)
            if book.entries:
                book._write(root)
            return book

    def save(self, root: Path) -> None:
        """Notes on the disk what is known here; what others added meanwhile stays."""
        with exclusive(Layout(root).takedowns_lock):
            entries = dict(Forgotten.load(root).entries)
            for key, entry in self.entries.items():
                there = entries.get(key, entry)
                shards, saw = {*there.shards, *entry.shards}, {*there.saw, *entry.saw}
                entries[key] = replace(entry, shards=tuple(sorted(shards)), saw=tuple(sorted(saw)))
            replace(self, entries=entries)._write(root)

    def _write(self, root: Path) -> None:
        """Replaces the file in one move, on the disk before this returns."""
        import pyarrow as pa
        import pyarrow.parquet as pq

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
        path = Layout(root).takedowns
        part = part_of(path)
        with open(part, "wb") as file:
            rows = [vars(self.entries[key]) for key in sorted(self.entries)]
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        fsync(root)

    def hash(self, kind: Kind, text: str) -> str:
        text = text[:MAX_ID] if kind == "id" else text
        return hashlib.sha256(f"{self.salt}\0{kind}\0{text}".encode(errors="surrogatepass")).hexdigest()

    def holds(self, post_id: str | None, user: str | None = None) -> bool:
        """Whether a post was taken down, by its id or its user."""
        if not self.entries:
            return False
        return self._holds("id", post_id) or self._holds("user", user)

    def _holds(self, kind: Kind, text: str | None) -> bool:
        return bool(text) and (kind, self.hash(kind, str(text))) in self.entries

    def adding(self, kind: Kind, texts: Iterable[str]) -> "Forgotten":
        """With more of a kind."""
        grown = replace(self, salt=self.salt or secrets.token_hex(16), entries=dict(self.entries))
        now = datetime.now(UTC)
        for text in texts:
            key = (kind, grown.hash(kind, text))
            grown.entries.setdefault(key, Entry(kind, key[1], now))
        return grown

    def noting(self, kind: Kind, text: str, shards: Iterable[str], saw: Iterable[str]) -> None:
        """Adds to an entry where its posts lie and what saw them; it is not done then, whatever was said before."""
        key = (kind, self.hash(kind, text))
        entry = self.entries.get(key) or Entry(kind, key[1], datetime.now(UTC))
        self.entries[key] = replace(
            entry,
            shards=tuple(sorted({*entry.shards, *shards})),
            saw=tuple(sorted({*entry.saw, *saw})),
            done=False,
        )

    def shards_of(self, kind: Kind, text: str) -> tuple[str, ...]:
        """Where posts of an entry lay."""
        entry = self.entries.get((kind, self.hash(kind, text)))
        return entry.shards if entry else ()

    def finished(self) -> "Forgotten":
        return replace(self, entries={key: replace(entry, done=True) for key, entry in self.entries.items()})

    @property
    def pending(self) -> bool:
        """Whether a takedown was begun and not ended."""
        return not all(entry.done for entry in self.entries.values())

    @property
    def saw(self) -> set[str]:
        """All networks that were made from posts that are forgotten now."""
        return {name for entry in self.entries.values() for name in entry.saw}

    def digest_of(self, shard: str) -> str:
        """Names what is forgotten of a shard; empty where that is nothing."""
        found = sorted(f"{kind} {hash}" for (kind, hash), entry in self.entries.items() if shard in entry.shards)
        return content_hash(found) if found else ""


def lines_of(path: Path) -> list[str]:
    """The ids or users of a file, each once: lines; a `.json` list, or a `.jsonl` of one JSON string a line, for those
    with line ends or odd spaces. Raises ValueError for a file that cannot be read or names none."""
    kind = path.suffix.lower()
    try:
        text = path.read_text("utf-8-sig")
        if kind == ".json":
            found = json.loads(text)
        elif kind in (".jsonl", ".ndjson"):
            found = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            found = [line for line in (line.rstrip("\r") for line in text.split("\n")) if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        what = {".json": "JSON list", ".jsonl": "file of JSON strings", ".ndjson": "file of JSON strings"}.get(
            kind, "text file of one id or user a line"
        )
        raise ValueError(f"{path} is not a readable {what}: {error}") from None
    if not isinstance(found, list) or any(isinstance(one, bool) or not isinstance(one, str | int) for one in found):
        raise ValueError(f"{path}: wanted a JSON list of strings (.json), or one JSON string a line (.jsonl)")
    if not found:
        raise ValueError(f"{path} names nobody: wanted one id or user a line")
    return list(dict.fromkeys(str(one) for one in found))
