"""From a shard as written to posts and rejects: every row read ends in exactly one of the two."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from moe_core.data.images import Picture, Rejected, decode, encode
from moe_core.data.splits import split_of
from moe_core.data.tags import canonical_tags
from moe_core.settings import Data
from moe_core.tables import replace_rows

POSTS = pa.schema(
    [
        ("shard", pa.string()),
        ("position", pa.int64()),  # row in the shard
        ("id", pa.string()),
        ("image", pa.binary()),  # what images.encode made of the middle square
        ("written", pa.list_(pa.string())),
        ("tags", pa.list_(pa.string())),  # canonical, each once
        ("user", pa.string()),
        ("taken_at", pa.timestamp("us")),
        ("width", pa.int32()),  # of the file
        ("height", pa.int32()),
        ("format", pa.string()),
        ("dhash", pa.int64()),
        ("split", pa.string()),
    ]
)
REJECTS = pa.schema(
    [
        ("shard", pa.string()),
        ("position", pa.int64()),
        ("id", pa.string()),
        ("written", pa.list_(pa.string())),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
EXAMPLES = 3  # rejects named in an error


@dataclass
class Count:
    """Of one shard: read = accepted + the sum of the reasons."""

    read: int = 0
    accepted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @property
    def rejected(self) -> int:
        return sum(self.reasons.values())


@dataclass(frozen=True)
class Ingested:
    """Where a shard's rows lie now."""

    count: Count
    posts_version: int
    rejects_version: int


def ingest(
    root: Path, shard: str, batches: Iterable[pa.RecordBatch], data: Data, report: Callable[[int], None]
) -> Ingested:
    """Replaces the shard's rows in posts.lance and rejects.lance under `root`.

    Raises ValueError, with nothing replaced in posts.lance, when more than `data.max_reject_rate` are rejected, and
    RuntimeError when a row was lost. `report` is told how many posts were read so far.
    """
    count = Count()
    rejects: list[pa.RecordBatch] = []
    accepted = _accept(shard, batches, data, count, rejects, report)
    posts_version = replace_rows(root / "posts.lance", POSTS, shard, _checked(accepted, shard, data, count))
    rejects_version = replace_rows(root / "rejects.lance", REJECTS, shard, rejects)
    return Ingested(count, posts_version, rejects_version)


def _checked(accepted: Iterator[pa.RecordBatch], shard: str, data: Data, count: Count) -> Iterator[pa.RecordBatch]:
    """Passes batches on; what is wrong with the whole shard is raised before its rows are committed."""
    yield from accepted
    if count.accepted + count.rejected != count.read:
        raise RuntimeError(
            f"shard {shard}: {count.read} read, {count.accepted} + {count.rejected} kept: a row was lost"
        )
    if count.read and count.rejected > data.max_reject_rate * count.read:
        why = ", ".join(f"{reason} {n}" for reason, n in count.reasons.most_common())
        raise ValueError(
            f"shard {shard}: {count.rejected} of {count.read} posts rejected ({why}; for example "
            f"{'; '.join(count.examples)}), more than data.max_reject_rate = {data.max_reject_rate}: "
            "look at the source, or raise the setting"
        )


def _accept(
    shard: str,
    batches: Iterable[pa.RecordBatch],
    data: Data,
    count: Count,
    rejects: list[pa.RecordBatch],
    report: Callable[[int], None],
) -> Iterator[pa.RecordBatch]:
    seen: set[str] = set()
    with ThreadPoolExecutor() as pool:
        for batch in batches:
            rows = batch.to_pylist()
            kept, refused = [], []
            pictures = pool.map(lambda row: _picture(row["image"], data.image_size), rows)
            for position, (row, picture) in enumerate(zip(rows, pictures, strict=True), count.read):
                try:
                    if row["reason"]:
                        raise Rejected(row["reason"], row["detail"] or "")
                    if not row["id"]:
                        raise Rejected("no_id")
                    if row["id"] in seen:
                        raise Rejected("duplicate_id")
                    written = [tag for tag in row["tags"] or () if tag is not None]
                    tags = canonical_tags(written)
                    if not tags:
                        raise Rejected("no_tags", "none written" if not written else "none left of those written")
                    if isinstance(picture, Rejected):
                        raise picture
                    seen.add(row["id"])
                    split = split_of(row["id"], row["user"], row["split"], data)
                    count.splits[split] += 1
                    kept.append(
                        {
                            "shard": shard,
                            "position": position,
                            "id": row["id"],
                            "image": encode(picture.pixels, data.image_size),
                            "written": written,
                            "tags": tags,
                            "user": row["user"],
                            "taken_at": row["taken_at"],
                            "width": picture.width,
                            "height": picture.height,
                            "format": picture.format,
                            "dhash": picture.dhash,
                            "split": split,
                        }
                    )
                except Rejected as why:
                    count.reasons[why.reason] += 1
                    if len(count.examples) < EXAMPLES:
                        count.examples.append(f"{row['id']}: {why}")
                    refused.append(
                        {
                            "shard": shard,
                            "position": position,
                            "id": row["id"],
                            "written": row["tags"],
                            "reason": why.reason,
                            "detail": why.detail,
                        }
                    )
            count.read += len(rows)
            count.accepted += len(kept)
            if refused:
                rejects.append(pa.RecordBatch.from_pylist(refused, schema=REJECTS))
            if kept:
                yield pa.RecordBatch.from_pylist(kept, schema=POSTS)
            report(count.read)


def _picture(data: bytes | None, size: int) -> Picture | Rejected:
    try:
        return decode(data or b"", size)
    except Rejected as why:
        return why
