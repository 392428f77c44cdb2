"""What `hardmoe init` reports of a source before anything is written: from cheap counts and a sample of posts."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import islice
from typing import Any, NamedTuple

import polars as pl
from rich.filesize import decimal

from moe_core.advice import Seen
from moe_core.data.images import Rejected, decode, encode
from moe_core.data.sources.columns import NAMED
from moe_core.data.sources.reader import reader_of
from moe_core.data.sources.scan import Shard
from moe_core.data.sources.shards import read_shard, split_by_name
from moe_core.data.sources.text_values import holds_separator
from moe_core.data.splits import GIVEN
from moe_core.data.tags import canonical_lists
from moe_core.errors import BadSource
from moe_core.settings import Source
from moe_core.text import format_duration, shown
from moe_core.threads import cores

SAMPLED_SHARDS = 3
SAMPLED_ROWS = 1000  # of each
PICTURES = 200  # of the sample that are decoded
FREQUENT = 10
EXAMPLES = 3
TAGS_SHOWN = 5  # posts whose tags are shown as they are read


def preview(source: Source, shards: list[Shard], image_size: int = 32) -> tuple[list[str], Seen]:
    """Lines for the user, and what the sample suggests of the whole.

    Raises BadSource for a source without a post, or without one picture that can be used.
    """
    started = time.perf_counter()
    rows = _sample(source, shards)
    reading = (time.perf_counter() - started) / max(1, len(rows))
    if not rows:
        raise BadSource(f"{shards[0].path or 'the synthetic data'} holds no post: wanted at least one row")
    total, exact = reader_of(source.format).count(source, shards)
    users = {row["user"] for row in rows if row["user"] is not None}
    tags, counts, tagging = _tags(rows)
    frequent = counts.most_common(FREQUENT)
    pictures = _pictures(rows, image_size, source)
    split = any(row["split"] is not None for row in rows)
    tagged = sum(t > 0 for t in tags)
    joined, share = _joined(source, shards[0])
    given = Counter(GIVEN.get((row["split"] or "").strip().lower()) for row in rows)
    seen = Seen(
        posts=int(total * share * pictures.usable * tagged / len(rows)),
        tags_a_post=sum(tags) / max(1, tagged),
        distinct_tags=len(counts),
        users=len(users),
        top_share=frequent[0][1] / tagged if frequent else 0.0,
        given={name: count / len(rows) for name, count in given.items() if name},
    )
    first = f"Found {len(shards)} shard{'s' if len(shards) > 1 else ''} of format {source.format}"
    lines = [
        first + (f" at {shown(source.uri, 300)}" if source.uri else ""),
        f"Rows: {total:,}" if exact else f"Rows: about {total:,} (estimated from the first file)",
        *_columns(source, shards[0]),
        *joined,
        f"Of a sample of {len(rows):,} posts: {len(users):,} distinct users; {sum(tags) / len(tags):.1f} tags each, "
        f"{sum(t == 0 for t in tags)} without",
        "Most frequent tags: " + (", ".join(f"{shown(tag)} {n}" for tag, n in frequent) or "none"),
        *_tags_as_read(rows),
        pictures.line,
        *_repeated(rows),
        _costs(total, reading + tagging + pictures.seconds, pictures.stored_bytes),
        _split(source, shards, split),
    ]
    return lines, seen


def _columns(source: Source, shard: Shard) -> list[str]:
    """Which column is which of ours, and which are not read."""
    columns = reader_of(source.format).columns
    if columns is None or (used_and_all := columns(source, shard)) is None:
        return []
    used, names = used_and_all
    ignored = [name for name in names if name not in used.values()]
    line = "Columns: " + ", ".join(f"{ours} from {shown(name)}" for ours, name in used.items())
    if ignored:
        more = f" and {len(ignored) - NAMED} more" if len(ignored) > NAMED else ""
        line += f"; ignored: {', '.join(shown(name) for name in ignored[:NAMED])}{more}"
    return [line]


def _tags_as_read(rows: list[dict[str, Any]]) -> list[str]:
    """Tags of some posts, as they are separated; and a warning of tags that seem to be several."""
    tagged = [row for row in rows if row["tags"]]
    step = max(1, len(tagged) // TAGS_SHOWN)
    lines = []
    for row in tagged[::step][:TAGS_SHOWN]:
        more = " ..." if len(row["tags"]) > FREQUENT else ""
        tags = " ".join(f'"{shown(tag)}"' for tag in row["tags"][:FREQUENT])
        lines.append(f"Tags as read, for example of {shown(row['id'] or 'no id')}: {tags}{more}")
    glued = [next((tag for tag in row["tags"] if tag and holds_separator(tag)), None) for row in tagged]
    if example := next((tag for tag in glued if tag), None):
        several = sum(tag is not None for tag in glued)
        lines.append(
            f"Warning: {several:,} of {len(rows):,} posts have tags that hold separators, "
            f'such as "{shown(example)}", which counts as one tag: if it is several, separate them in the source'
        )
    return lines


def _joined(source: Source, shard: Shard) -> tuple[list[str], float]:
    """A line where several rows of a table are one post; posts a row."""
    row_keys = reader_of(source.format).row_keys
    if row_keys is None:
        return [], 1.0
    keys = list(islice(row_keys(source, shard), SAMPLED_ROWS))
    posts = len(set(keys) - {None}) + keys.count(None)
    if posts == len(keys):
        return [], 1.0
    line = f"Rows that agree on id and image are one post with all their tags: {len(keys):,} rows are {posts:,} posts"
    return [line], posts / len(keys)


def _split(source: Source, shards: list[Shard], given: bool) -> str:
    """Where splits come from. Raises BadSource where files of one name leave nothing to train on."""
    named = Counter(split_by_name(source, shard.path) for shard in shards)
    if named.keys() <= {None}:
        return "Split: the source's own" if given else "Split: by hash (data.test, data.validation)"
    counts = ", ".join(f"{split or 'without'} {n}" for split, n in named.most_common())
    rest = "" if "test" in named else "; test posts: by hash"
    if named.keys() <= {"test", "validation"}:
        rest = '; nothing is left to train on: source.split_column = "#none" ignores names'
    return f"Split: by the names of files ({counts}){rest}"


def _repeated(rows: list[dict[str, Any]]) -> list[str]:
    """Warnings of ids that several posts of the sample have, and of pictures under several ids."""
    lines = []
    ids = Counter(row["id"] for row in rows if row["id"])
    if repeated := [name for name, n in ids.items() if n > 1]:
        lines.append(
            f"Warning: {sum(ids[name] - 1 for name in repeated):,} of {len(rows):,} posts have the id of an "
            f"earlier post (duplicate_id), such as {shown(repeated[0])}: only the first of each is used"
        )
    pictures: dict[bytes, set[str]] = {}
    for row in rows:
        if row["image"] and row["id"]:
            pictures.setdefault(sha256(row["image"]).digest(), set()).add(row["id"])
    copies = [names for names in pictures.values() if len(names) > 1]
    if copies:
        posts = sum(len(names) - 1 for names in copies)
        lines.append(
            f"Warning: {posts:,} of {len(rows):,} posts have the image file of a post with another id, such as "
            f"{' and '.join(map(shown, sorted(copies[0])[:2]))}. If the table has a row for each tag, give --id-column "
            "the column of file names: then rows of one name are joined"
        )
    return lines


def _sample(source: Source, shards: list[Shard]) -> list[dict[str, Any]]:
    """The first rows of the first, a middle and the last shard."""
    sampled = dict.fromkeys((0, len(shards) // 2, len(shards) - 1))
    rows: list[dict[str, Any]] = []
    for number in list(sampled)[:SAMPLED_SHARDS]:
        seen = 0
        for batch in read_shard(source, shards[number]):
            rows.extend(batch.slice(0, SAMPLED_ROWS - seen).to_pylist())
            seen += len(batch)
            if seen >= SAMPLED_ROWS:
                break
    return rows


def _tags(rows: list[dict[str, Any]]) -> tuple[list[int], Counter[str], float]:
    """Number of canonical tags of each post, posts of each tag, and seconds a post."""
    started = time.perf_counter()
    lists = canonical_lists(pl.Series([row["tags"] for row in rows], dtype=pl.List(pl.String))).to_list()
    seconds = (time.perf_counter() - started) / len(rows)
    return [len(tags) for tags in lists], Counter(t for tags in lists for t in tags), seconds


class _Pictures(NamedTuple):
    line: str  # on what would be rejected
    seconds: float  # an image on all the cores
    stored_bytes: float  # a post
    usable: float  # share of the images


def _pictures(rows: list[dict[str, Any]], size: int, source: Source) -> _Pictures:
    """Decodes some images. Raises BadSource where none of the sample can be used."""
    step = max(1, len(rows) // PICTURES)
    chosen = rows[::step][:PICTURES]

    def try_image(row: dict[str, Any]) -> bytes | tuple[str, str]:
        if row["reason"]:
            return row["reason"], row["detail"] or ""
        if not row["id"]:
            return "no_id", ""
        try:
            return encode(decode(row["image"] or b"", size).pixels, size)
        except Rejected as why:
            return why.reason, why.detail

    started = time.perf_counter()
    with ThreadPoolExecutor(cores()) as pool:
        tried = list(pool.map(try_image, chosen))
    seconds = (time.perf_counter() - started) / len(chosen)
    good = [result for result in tried if isinstance(result, bytes)]
    bad = [(row, result) for row, result in zip(chosen, tried, strict=True) if isinstance(result, tuple)]
    texts = sum(len(str(row["tags"])) + 200 for row in chosen)
    stored = (sum(map(len, good)) + texts) / len(chosen)
    if not bad:
        return _Pictures(f"Problems: none in {len(chosen)} images decoded", seconds, stored, 1.0)
    reasons = ", ".join(f"{reason} {n}" for reason, n in Counter(why[0] for _, why in bad).most_common())
    first_of_each = list({result[0]: (row, result) for row, result in reversed(bad)}.values())[::-1]
    examples = "; ".join(
        f"{shown(row['id'] or 'no id')}: {shown(f'{why}: {detail}' if detail else why, 120)}"
        for row, (why, detail) in first_of_each[:EXAMPLES]
    )
    if not good and not any(isinstance(try_image(row), bytes) for row in rows):
        raise BadSource(
            f"{shown(source.uri, 300)}: none of the {len(rows):,} posts sampled has a usable picture "
            f"({reasons}; for example {examples}): is the source, its format (--format) or --image-column wrong?"
        )
    line = f"Problems: {len(bad)} of {len(chosen)} images ({reasons}); for example {examples}"
    return _Pictures(line, seconds, stored, len(good) / len(chosen))


def _costs(total: int, seconds: float, size: float) -> str:
    took, needs = format_duration(total * seconds), decimal(int(total * size))
    return f"Estimate for the ingest, from the sample: {took} on this machine, {needs} of disk"
