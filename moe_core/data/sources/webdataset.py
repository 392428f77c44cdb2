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

from moe_core.data.image_files import IMAGE_SUFFIXES, MAX_FILE_BYTES
from moe_core.data.sources.columns import BY_ROW, USUAL
from moe_core.data.sources.files import File, files_at, is_remote, key_of
from moe_core.data.sources.originals import shard_name
from moe_core.data.sources.raw import Row, Unusable, in_batches, reasons_noted
from moe_core.data.sources.reader import Reader
from moe_core.data.sources.registry import FORMATS
from moe_core.data.sources.scan import Scan, Shard
from moe_core.data.sources.tars import Member, members
from moe_core.data.sources.text_values import tags_of, tags_of_text, text_of, time_of
from moe_core.settings import Source
from moe_core.text import utf8

FORMAT = FORMATS["webdataset"]
NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)
# names such as 0001.depth.png beside 0001.jpg: never the picture where there is another
COMPANION = re.compile(
    "depth|masks?|seg|segm|segment|segmentation|sem|semantic|instances?|panoptic|labels?|normals?|canny|edges?|hed|"
    "sketch|lineart|scribble|pose|keypoints|openpose|flow|disparity|disp|alpha|matte|trimap|heatmap|saliency|attention|"
    "bbox|boxes|anno|annotations?|control|condition|cond|thumb|thumbnail|preview|small|target|gt|latent"
)
PICTURE = re.compile("photo|image|img|rgb|colou?r|picture|pic|original|orig|input|source|src|full")
MOST_MEMBERS = 100  # of one sample
PREVIEWED = 20  # samples whose fields `init` names
TEXTS = ("json", "txt", "cls")
CAPTIONS = ("caption", "text")  # of img2dataset's .json: sentences, of which the #words are tags


def find(source: Source, scan: Scan) -> list[Shard]:
    files = scan.readable(files_at(source.uri, FORMAT.suffixes, FORMAT.what), _check)
    return [Shard(key_of(file.name, FORMAT.suffixes), file.path, scan.hashes.of(file)) for file in files]


def _check(file: File) -> None:
    """Raises BadSource for a tar that is cut short: the headers of a local tar are read to its end."""
    for _ in members(file.path, contents=False):
        if is_remote(file.path):
            break


def read(source: Source, shard: Shard, cache: Path | None) -> Iterator[pa.RecordBatch]:
    samples, tar = enumerate(_samples(shard.path)), shard_name(source, shard.path)
    return in_batches(_post(sample, source, f"{shard.key}/{row}", tar) for row, sample in samples)


def columns(source: Source, shard: Shard) -> tuple[dict[str, str], list[str]] | None:
    """Fields of .json of the first samples; None where there are none."""
    used, names = dict[str, str](), dict[str, None]()
    for _, parts in islice(_samples(shard.path), PREVIEWED):
        try:
            document = _best(parts, ("json",))
            values = json.loads(document.data) if document else None
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            names |= dict.fromkeys(values)
            names_of_ours = {ours: _field(values, ours, source) for ours in ("tags", "user", "taken_at", "split")}
            used = {ours: name for ours, name in names_of_ours.items() if name} | used
    if source.id_column in names:
        used["id"] = source.id_column
    if caption := next((name for name in (source.caption_column, *CAPTIONS) if name in names), None):
        used |= {"caption": caption} if source.caption_column or "tags" not in used else {}
    return (used, list(names)) if names else None


def count(source: Source, shards: Sequence[Shard]) -> tuple[int, bool]:
    """Samples of all tars; of remote ones, as many as the first has in each."""
    counted = shards[:1] if is_remote(source.uri) else shards
    rows = sum(1 for shard in counted for _ in _samples(shard.path, contents=False))
    return rows * len(shards) // len(counted), len(counted) == len(shards)


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
    match = NAME.fullmatch(member.name)
    if not match:
        return None
    *more, suffix = match[2].split(".")
    suffix = suffix.lower()
    if f".{suffix}" not in IMAGE_SUFFIXES and suffix not in TEXTS:
        return None  # another member of the sample, such as .npy
    role = list[str]()
    while more and (_kind(more[-1].lower()) != 2 or f".{more[-1].lower()}" in IMAGE_SUFFIXES):
        role.insert(0, more.pop().lower())  # also of 0001.jpg.json
    return _Part(match[1], ".".join(more), ".".join(role), suffix, member)


def _samples(path: str, contents: bool = True) -> Iterator[Sample]:
    """A repeated key with a member that it has already is a sample of its own: the ingest rejects it as a duplicate."""
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
        names = {(earlier.more, earlier.role, earlier.suffix) for earlier in parts}
        if parts and (part.short != parts[0].short or (part.more, part.role, part.suffix) in names):
            yield from _cut(parts, several)
            parts, size = [], 0
        elif len(parts) >= MOST_MEMBERS or size >= MAX_FILE_BYTES:
            several = part.short
            same_key = [earlier for earlier in parts if earlier.more == part.more]
            yield from _cut([earlier for earlier in parts if earlier.more != part.more] or parts, several)
            parts = same_key if len(same_key) < len(parts) else []
            size = sum(len(earlier.member.data) for earlier in parts)
        parts.append(part)
        size += len(member.data)
    yield from _cut(parts, several)


def _cut(parts: list[_Part], several: str | None) -> Iterator[Sample]:
    """Samples of members with one key up to the first dot."""
    if not parts:
        return
    if parts[0].short != several and not _are_several(parts):
        yield parts[0].short, {_suffix(part.more, part.role, part.suffix): part.member for part in parts}
        return
    samples: dict[str, dict[str, Member]] = {}
    for part in parts:
        key = f"{part.short}.{part.more}" if part.more else part.short
        samples.setdefault(key, {})[_suffix(part.role, part.suffix)] = part.member
    yield from samples.items()


def _are_several(parts: list[_Part]) -> bool:
    """Whether names differ between the first dot and the suffix by sample, rather than by member of one sample."""
    texts = {part.more for part in parts if part.is_text}
    pictures = {part.more for part in parts if not part.is_text}
    if texts & pictures - {""}:
        return True
    if not texts:
        return len(pictures) > 1  # pictures alone: each is a row
    return all(more[:1].isdigit() for more in texts)  # clip_1.5.json does not describe clip_1.0.jpg


def _kind(role: str) -> int:
    """1 for the picture itself, 3 for a companion of it, 2 for a word that tells neither."""
    words = re.split("[_-]", role)
    return 3 if any(map(COMPANION.fullmatch, words)) else 1 if any(map(PICTURE.fullmatch, words)) else 2


def _suffix(*parts: str) -> str:
    return ".".join(part for part in parts if part).lower()


def _best(parts: dict[str, Member], suffixes: Sequence[str]) -> Member | None:
    """The member with one of the suffixes and the fewest other words, which is no companion of a picture."""

    def rank(name: str) -> tuple[int, int]:
        *role, suffix = name.split(".")
        return max(map(_kind, role), default=0), suffixes.index(suffix)

    names = [name for name in parts if name.rpartition(".")[2] in suffixes]
    return parts[min(names, key=rank)] if names else None


def _post(sample: Sample, source: Source, number: str, tar: str) -> Row:
    key, parts = sample
    row: Row = {"id": key}
    with reasons_noted(row):
        if problem := next((member.problem for member in parts.values() if member.problem), None):
            raise problem
        document = _best(parts, ("json",))
        description = _json(document) if document else None
        _add_text(row, description, parts, source)
        if source.id_column == BY_ROW:
            row["id"] = number
        elif name := source.id_column:
            row["id"] = text_of(description.get(name), name) if isinstance(description, dict) else None
        wanted = source.image_column.lower()
        image = parts.get(wanted) or _best(parts, (wanted,) if wanted else [suffix[1:] for suffix in IMAGE_SUFFIXES])
        if image is None:
            raise Unusable("no_image_file", f"sample {key} has {', '.join(sorted(parts))}, no image")
        row["image"] = image.data
        row["original"] = row.get("original") or utf8(f"{tar}#{image.name}")
    return row


def _add_text(row: Row, description: Any, parts: dict[str, Member], source: Source) -> None:
    """Adds the tags: of .json by the settings or usual names, else of its caption, else of .txt, else of .cls."""
    values = description if isinstance(description, dict) else {}
    for ours in ("user", "split"):
        row[ours] = text_of(_value(values, ours, source), ours)
    row["taken_at"] = time_of(_value(values, "taken_at", source))
    url = _value(values, "original", source)
    row["original"] = url if isinstance(url, str) else None
    if source.caption_column:
        name = source.caption_column
        member = _best(parts, (name,)) if name in ("txt", "cls") else None
        row["caption"] = _text(member) if member else text_of(values.get(name), name)
        if source.tags_column:
            row["tags"] = tags_of(values.get(source.tags_column))
        return
    tags = description if isinstance(description, list) else _value(values, "tags", source)
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
