"""WebDataset tars, and what img2dataset writes. One shard a tar.

A sample is what lies side by side in the tar with one key: the member's name up to the first dot of its last part.
"""

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from moe_core.data.sources.columns import BY_ROW, USUAL
from moe_core.data.sources.files import Digests, File, Shard, files_at, is_remote, key_of
from moe_core.data.sources.raw import IMAGE_SUFFIXES, Row, Unusable, in_batches, tags_of, tags_of_text, text_of, time_of
from moe_core.data.sources.tars import Member, members
from moe_core.settings import Source

SUFFIXES = (".tar", ".tar.gz", ".tgz")
WHAT = "a tar of samples, a folder of them (*.tar, *.tar.gz), a glob or a URI"
KEY = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)
LOOKED = 20  # samples whose fields `init` names
TEXTS = ("json", "txt", "cls")
CAPTIONS = ("caption", "text")  # of img2dataset's .json: sentences, of which the #words are tags


def find(source: Source, digests: Digests) -> list[tuple[str, str, str]]:
    files = digests.readable(files_at(source.uri, SUFFIXES, WHAT), _look)
    return [(key_of(file.name, SUFFIXES), file.path, digests.of(file)) for file in files]


def _look(file: File) -> None:
    """Raises ValueError for a tar that is cut short: a local one is looked through to its end, without its contents."""
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
            values = json.loads(parts["json"].data) if "json" in parts else None
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


def count(source: Source, shards: list[Shard]) -> tuple[int, bool]:
    """Samples of the first tar; the others are judged by their sizes."""
    sizes = {file.path: file.size for file in files_at(source.uri, SUFFIXES, WHAT)}
    rows = sum(1 for _ in _samples(shards[0].path, contents=False))
    total = sum(sizes.get(shard.path, 0) for shard in shards)
    return round(rows * total / max(1, sizes.get(shards[0].path, total))), len(shards) == 1


Sample = tuple[str, dict[str, Member]]


def _samples(path: str, contents: bool = True) -> Iterator[Sample]:
    """A key that comes again with a member it has already is a sample of its own: the ingest says it is there twice."""
    key, parts = "", dict[str, Member]()
    for member in members(path, contents):
        found = KEY.fullmatch(member.name)
        if not found:
            base = member.name.rpartition("/")[2]
            if not base.lower().endswith(IMAGE_SUFFIXES) or base.startswith("._"):
                continue  # a note, .DS_Store, macOS' "._" twin of a file
            if parts:
                yield key, parts
            yield member.name, {base.rpartition(".")[2].lower(): member}
            key, parts = "", {}
            continue
        name, suffix = found[1], found[2].lower()
        if f".{suffix}" not in IMAGE_SUFFIXES and suffix not in TEXTS and "." in suffix:
            suffix = suffix.rpartition(".")[2]  # as in 0001.photo.jpg
        if f".{suffix}" not in IMAGE_SUFFIXES and suffix not in TEXTS:
            continue  # another member of the sample, such as .npy
        if parts and (name != key or suffix in parts):
            yield key, parts
            parts = {}
        key = name
        parts[suffix] = member
    if parts:
        yield key, parts


def _post(sample: Sample, source: Source, number: str) -> Row:
    key, parts = sample
    row: Row = {"id": key}
    problem = next((member.problem for member in parts.values() if member.problem), None)
    if problem:
        return row | {"reason": problem.reason, "detail": problem.detail}
    try:
        said = _json(parts["json"]) if "json" in parts else None
        _describe(row, said, parts, source)
        if source.id_column == BY_ROW:
            row["id"] = number
        elif source.id_column:
            row["id"] = text_of(said.get(source.id_column), source.id_column) if isinstance(said, dict) else None
        wanted = (source.image_column.lower(),) if source.image_column else [s[1:] for s in IMAGE_SUFFIXES]
        image = next((parts[suffix] for suffix in wanted if suffix in parts), None)
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
        row["caption"] = _text(parts[at]) if at in ("txt", "cls") and at in parts else text_of(values.get(at), at)
        if source.tags_column:
            row["tags"] = tags_of(values.get(source.tags_column))
        return
    tags = said if isinstance(said, list) else _value(values, "tags", source)
    caption = next((values[name] for name in CAPTIONS if values.get(name)), None)
    if tags is not None or source.tags_column:
        row["tags"] = tags_of(tags)
    elif caption is not None:
        row["caption"] = text_of(caption, "caption")
    elif "txt" in parts:
        row["tags"] = tags_of_text(_text(parts["txt"]))
    elif "cls" in parts:
        row["tags"] = [_text(parts["cls"]).strip()]


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
