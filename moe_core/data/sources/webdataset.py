"""WebDataset tars, and what img2dataset writes. One shard a tar.

A sample is what lies side by side in the tar with one key: the member's name up to the first dot of its last part.
Where a picture and a text share more, as 22.05.jpg and 22.05.json beside 22.10.jpg and 22.10.json, that is the key.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from moe_core.data.sources.columns import BY_ROW, USUAL
from moe_core.data.sources.files import File, Scan, Shard, files_at, is_remote, key_of
from moe_core.data.sources.raw import (
    IMAGE_SUFFIXES,
    MAX_FILE_BYTES,
    Row,
    Unusable,
    in_batches,
    tags_of,
    tags_of_text,
    text_of,
    time_of,
)
from moe_core.data.sources.reader import Reader
from moe_core.data.sources.tars import Member, members
from moe_core.formats import FORMATS
from moe_core.settings import Source

FORMAT = FORMATS["webdataset"]
NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)
# what 0001.depth.png beside 0001.jpg is: never the picture where there is another
BESIDE = re.compile(
    "depth|masks?|seg|segm|segment|segmentation|sem|semantic|instances?|panoptic|labels?|normals?|canny|edges?|hed|"
    "sketch|lineart|scribble|pose|keypoints|openpose|flow|disparity|disp|alpha|matte|trimap|heatmap|saliency|attention|"
    "bbox|boxes|anno|annotations?|control|condition|cond|thumb|thumbnail|preview|small|target|gt|latent"
)
PICTURE = re.compile("photo|image|img|rgb|colou?r|picture|pic|original|orig|input|source|src|full")
MOST_MEMBERS = 100  # of one sample
LOOKED = 20  # samples whose fields `init` names
TEXTS = ("json", "txt", "cls")
CAPTIONS = ("caption", "text")  # of img2dataset's .json: sentences, of which the #words are tags


def find(source: Source, scan: Scan) -> list[Shard]:
    files = scan.readable(files_at(source.uri, FORMAT.suffixes, FORMAT.what), _check)
    return [Shard(key_of(file.name, FORMAT.suffixes), file.path, scan.hash_of(file)) for file in files]


def _check(file: File) -> None:
    """Raises BadSource for a tar that is cut short: a local one is looked through to its end, without its contents."""
    for _ in members(file.path, contents=False):
        if is_remote(file.path):
            break


def read(source: Source, shard: Shard, cache: Path | None) -> Iterator[pa.RecordBatch]:
    samples = _samples(shard.path)
    return in_batches(_post(sample, source, f"{shard.key}/{row}") for row, sample in enumerate(samples))


def columns(source: Source, shard: Shard) -> tuple[dict[str, str], list[str]] | None:
    """Fields of .json of the first samples; None where there are none."""
    taken, names = dict[str, str](), dict[str, None]()
    for _, parts in islice(_samples(shard.path), LOOKED):
        try:
            about = _best(parts, ("json",))
            values = json.loads(about.data) if about else None
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            names |= dict.fromkeys(values)
            found = {ours: _field(values, ours, source) for ours in ("tags", "user", "taken_at", "split")}
            taken = {ours: name for ours, name in found.items() if name} | taken
    if source.id_column in names:
        taken["id"] = source.id_column
    if caption := next((name for name in (source.caption_column, *CAPTIONS) if name in names), None):
        taken |= {"caption": caption} if source.caption_column or "tags" not in taken else {}
    return (taken, list(names)) if names else None


def count(source: Source, shards: Sequence[Shard]) -> tuple[int, bool]:
    """Samples of the first tar; the others are judged by their sizes."""
    sizes = {file.path: file.size for file in files_at(source.uri, FORMAT.suffixes, FORMAT.what)}
    rows = sum(1 for _ in _samples(shards[0].path, contents=False))
    total = sum(sizes.get(shard.path, 0) for shard in shards)
    return round(rows * total / max(1, sizes.get(shards[0].path, total))), len(shards) == 1


Sample = tuple[str, dict[str, Member]]  # key; members by what their names have behind it, in lower case


@dataclass(frozen=True)
class _Part:
    """A member's name: `short` up to the first dot, then perhaps more of the key, what it is, and its suffix."""

    short: str
    more: str
    role: str
    suffix: str
    member: Member

    @property
    def is_text(self) -> bool:
        return self.suffix in TEXTS


def _part(member: Member) -> _Part | None:
    found = NAME.fullmatch(member.name)
    if not found:
        return None
    *more, suffix = found[2].split(".")
    suffix = suffix.lower()
    if f".{suffix}" not in IMAGE_SUFFIXES and suffix not in TEXTS:
        return None  # another member of the sample, such as .npy
    role = list[str]()
    while more and (_kind(more[-1].lower()) != 2 or f".{more[-1].lower()}" in IMAGE_SUFFIXES):
        role.insert(0, more.pop().lower())  # also of 0001.jpg.json
    return _Part(found[1], ".".join(more), ".".join(role), suffix, member)


def _samples(path: str, contents: bool = True) -> Iterator[Sample]:
    """A key that comes again with a member it has already is a sample of its own: the ingest says it is there twice."""
    parts: list[_Part] = []
    several = None  # the last key that proved to be a prefix of several samples'
    size = 0
    for member in members(path, contents):
        part = _part(member)
        if part is None:
            base = member.name.rpartition("/")[2]
            if base.lower().endswith(IMAGE_SUFFIXES) and not base.startswith("._") and not NAME.fullmatch(member.name):
                yield from _cut(parts, several)
                parts, size = [], 0
                yield member.name, {base.rpartition(".")[2].lower(): member}
            continue  # else a note, .DS_Store, macOS' "._" twin of a file
        names = {(one.more, one.role, one.suffix) for one in parts}
        if parts and (part.short != parts[0].short or (part.more, part.role, part.suffix) in names):
            yield from _cut(parts, several)
            parts, size = [], 0
        elif len(parts) >= MOST_MEMBERS or size >= MAX_FILE_BYTES:
            several = part.short
            begun = [one for one in parts if one.more == part.more]
            yield from _cut([one for one in parts if one.more != part.more] or parts, several)
            parts = begun if len(begun) < len(parts) else []
            size = sum(len(one.member.data) for one in parts)
        parts.append(part)
        size += len(member.data)
    yield from _cut(parts, several)


def _cut(parts: list[_Part], several: str | None) -> Iterator[Sample]:
    """Samples of members with one key up to the first dot."""
    if not parts:
        return
    if parts[0].short != several and not _are_several(parts):
        yield parts[0].short, {_suffix(one.more, one.role, one.suffix): one.member for one in parts}
        return
    samples: dict[str, dict[str, Member]] = {}
    for one in parts:
        key = f"{one.short}.{one.more}" if one.more else one.short
        samples.setdefault(key, {})[_suffix(one.role, one.suffix)] = one.member
    yield from samples.items()


def _are_several(parts: list[_Part]) -> bool:
    """Whether what lies between the first dot and the suffix tells samples apart, rather than members of one."""
    texts = {one.more for one in parts if one.is_text}
    pictures = {one.more for one in parts if not one.is_text}
    if texts & pictures - {""}:
        return True
    if not texts:
        return len(pictures) > 1  # pictures alone: each is a row
    return all(more[:1].isdigit() for more in texts)  # clip_1.5.json says nothing of clip_1.0.jpg


def _kind(role: str) -> int:
    """1 for the picture itself, 3 for what lies beside it, 2 for a word that says neither."""
    words = re.split("[_-]", role)
    return 3 if any(map(BESIDE.fullmatch, words)) else 1 if any(map(PICTURE.fullmatch, words)) else 2


def _suffix(*parts: str) -> str:
    return ".".join(part for part in parts if part).lower()


def _best(parts: dict[str, Member], suffixes: Sequence[str]) -> Member | None:
    """The member with one of the suffixes that says least else, and is not what lies beside a picture."""

    def rank(name: str) -> tuple[int, int]:
        *role, suffix = name.split(".")
        return max(map(_kind, role), default=0), suffixes.index(suffix)

    names = [name for name in parts if name.rpartition(".")[2] in suffixes]
    return parts[min(names, key=rank)] if names else None


def _post(sample: Sample, source: Source, number: str) -> Row:
    key, parts = sample
    row: Row = {"id": key}
    problem = next((member.problem for member in parts.values() if member.problem), None)
    if problem:
        return row | {"reason": problem.reason, "detail": problem.detail}
    try:
        about = _best(parts, ("json",))
        said = _json(about) if about else None
        _describe(row, said, parts, source)
        if source.id_column == BY_ROW:
            row["id"] = number
        elif source.id_column:
            row["id"] = text_of(said.get(source.id_column), source.id_column) if isinstance(said, dict) else None
        wanted = source.image_column.lower()
        image = parts.get(wanted) or _best(parts, (wanted,) if wanted else [suffix[1:] for suffix in IMAGE_SUFFIXES])
        if image is None:
            raise Unusable("no_image_file", f"sample {key} has {', '.join(sorted(parts))}, no image")
        row["image"] = image.data
    except Unusable as why:
        row |= {"reason": why.reason, "detail": why.detail}
    return row


def _describe(row: Row, said: Any, parts: dict[str, Member], source: Source) -> None:
    """Tags: of .json by the settings or the usual names, else of its caption, else of .txt, else of .cls."""
    values = said if isinstance(said, dict) else {}
    for ours in ("user", "split"):
        row[ours] = text_of(_value(values, ours, source), ours)
    row["taken_at"] = time_of(_value(values, "taken_at", source))
    if source.caption_column:
        at = source.caption_column
        member = _best(parts, (at,)) if at in ("txt", "cls") else None
        row["caption"] = _text(member) if member else text_of(values.get(at), at)
        if source.tags_column:
            row["tags"] = tags_of(values.get(source.tags_column))
        return
    tags = said if isinstance(said, list) else _value(values, "tags", source)
    caption = next((values[name] for name in CAPTIONS if values.get(name)), None)
    if tags is not None or source.tags_column:
        row["tags"] = tags_of(tags)
    elif caption is not None:
        row["caption"] = text_of(caption, "caption")
    elif text := _best(parts, ("txt",)):
        row["tags"] = tags_of_text(_text(text))
    elif number := _best(parts, ("cls",)):
        row["tags"] = [_text(number).strip()]


def _field(values: dict[str, Any], ours: str, source: Source) -> str | None:
    """The field of .json for one of ours."""
    if named := getattr(source, f"{ours}_column"):
        return str(named) if named in values else None
    return next((name for name in USUAL[ours] if values.get(name) is not None), None)


def _value(values: dict[str, Any], ours: str, source: Source) -> Any:
    name = _field(values, ours, source)
    return None if name is None else values[name]


def _json(member: Member) -> Any:
    try:
        return json.loads(member.data)
    except (ValueError, RecursionError) as error:
        raise Unusable("bad_row", f"member {member.name} is not JSON: {error}") from None


def _text(member: Member) -> str:
    try:
        return member.data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Unusable("bad_row", f"member {member.name} is not UTF-8") from None


READERS = {"webdataset": Reader(find, read, count, columns)}
