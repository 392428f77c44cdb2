"""COCO JSON: instances_*.json, captions_*.json and others of their form. One shard a split: files with one ending.

Tags are the names of the categories on a picture, followed by the words of its captions. The file is read piece by
piece; only a name and the numbers of the tags of each picture are in memory.
"""

import json
import os
import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from moe_core.data.image_files import IMAGE_SUFFIXES
from moe_core.data.sources.files import WILDCARD, File, file_of, files_at, key_of, listing, local, walk
from moe_core.data.sources.images import ImageFolder
from moe_core.data.sources.raw import Row, in_batches, reasons_noted
from moe_core.data.sources.reader import Contents, Reader
from moe_core.data.sources.registry import FORMATS
from moe_core.data.sources.scan import Scan, Shard
from moe_core.data.sources.text_values import MAX_LINE, text_of, time_of
from moe_core.errors import BadSource
from moe_core.settings import Source
from moe_core.store.hashing import content_hash
from moe_core.text import one_line

FORMAT = FORMATS["coco"]
KINDS = ("instances", "labels", "captions")  # read together where they are of one split
OTHERS = ("person_keypoints", "panoptic", "stuff", "image_info")  # with no tags, or none that KINDS lack
PARTS = ("annotations", "labels")  # folders beside those of the images
SECTION = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
HEAD, BLOCK = 1 << 20, 1 << 20
WORD = re.compile(r"[^\W\d_]{3,}")
STOP_WORDS = """the and with for from into onto upon over under out off near next are was were has have had its
his her their them they this that these those there who which while some very other each one two three both being been
you your our she him all any not but than then also about"""
STOP = frozenset(WORD.findall(STOP_WORDS))  # of captions in English


def is_coco(path: Path | str) -> bool:
    """Whether a file begins as COCO JSON does."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return False
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and bool(SECTION.search(head))


def find(source: Source, scan: Scan) -> list[Shard]:
    files = {file.path: file for file in _files(source)}
    first = [path for path in files if _together(path, files)[0] == path]
    images = listing(_images(source), IMAGE_SUFFIXES, hidden=True)
    shards = []
    for file in scan.readable([files[path] for path in first], lambda file: _check(file, files)):
        contents = [scan.hashes.of(files[path]) for path in _together(file.path, files)]
        shards.append(Shard(key_of(file.name, (".json",)), file.path, content_hash([*contents, images])))
    return shards


def _files(source: Source) -> list[File]:
    """The COCO files of the source. Raises BadSource where there is none."""
    path = local(source.uri)
    if path.is_file():
        candidates = [file_of(path, path.parent)]
    elif path.is_dir():
        candidates = [
            f for f in walk(path, hidden=True) if f.name.lower().endswith(".json") and "/." not in f"/{f.name}"
        ]
        candidates = [file for file in candidates if not os.path.basename(file.name).startswith(OTHERS)] or candidates
    else:
        candidates = files_at(source.uri, (".json",), FORMAT.what)
    files = sorted((file for file in candidates if is_coco(file.path)), key=lambda file: file.name)
    if not files:
        raise BadSource(f"no COCO JSON at {source.uri}: wanted {FORMAT.what}")
    return files


def _together(path: str, present: Container[str]) -> list[str]:
    """The present files of one split: instances first, captions last."""
    folder, name = os.path.split(path)
    kind, _, rest = name.partition("_")
    if kind not in KINDS or not rest:
        return [path]
    names = [os.path.join(folder, f"{kind}_{rest}") for kind in KINDS]
    return [name for name in names if name in present]


def _check(file: File, files: dict[str, File]) -> None:
    """Raises BadSource for a file that is cut short."""
    for path in _together(file.path, files):
        with open(path, "rb") as opened:
            opened.seek(max(0, files[path].size - 100))
            if not opened.read().rstrip().endswith(b"}"):
                raise BadSource(f"{path} is cut short, or still being copied: it does not end with a brace")


def _images(source: Source) -> Path:
    """The folder below which images lie."""
    if source.images:
        return local(source.images)
    path = local(source.uri)
    if wild := WILDCARD.search(str(path)):
        path = Path(str(path)[: wild.start()]).parent
    if path.is_file():
        path = path.parent
    return path.parent if path.name in PARTS else path


def read(source: Source, shard: Shard, cache: Path | None) -> Iterator[pa.RecordBatch]:
    root, path = _images(source), Path(shard.path)
    paths = _together(shard.path, {file.path for file in _files(source)})
    rest = re.sub(f"^({'|'.join(KINDS)})_", "", path.stem)
    folders = [path.parent / rest, root / rest, root / "images" / rest, path.parent, root, root / "images"]
    images = ImageFolder(*(folder for folder in folders if folder.is_dir()))
    # 0.jpg of train/ and of val/ are two pictures
    deeper = os.path.relpath(path.parent, root) if root in path.parent.parents else ""
    within = rest if rest != path.stem or path.parent.name in PARTS else deeper
    return images.watching(in_batches(_posts(paths, source, images, within)))


def _posts(paths: list[str], source: Source, images: ImageFolder, within: str) -> Iterator[Row]:
    pictures: list[tuple[Any, ...]] = []
    names: dict[Any, str] = {}
    tags: dict[Any, dict[Any, None]] = {}
    seen: set[Any] = set()
    fields = ("file_name", source.id_column, "date_captured", source.original_column)
    for path in paths:
        here = set[Any]()
        for section, element in elements(Path(path)):
            if not isinstance(element, dict):
                continue
            if section == "images":
                number = _number(element.get("id"))
                if number not in seen:
                    pictures.append((number, *map(element.get, fields)))
                here.add(number)
            elif section == "categories":
                names[_number(element.get("id"))] = str(element.get("name") or element.get("id"))
            elif section == "annotations":
                of_image = tags.setdefault(_number(element.get("image_id")), {})
                if isinstance(caption := element.get("caption"), str):
                    of_image |= {word: None for word in map(str.lower, WORD.findall(caption)) if word not in STOP}
                elif element.get("category_id") is not None:
                    of_image[(_number(element["category_id"]),)] = None
        seen |= here
    for number, name, own, taken, url in pictures:
        row: Row = {"id": None, "taken_at": time_of(taken)}
        with reasons_noted(row):
            file = text_of(name, "file_name") or ""
            row["id"] = (
                text_of(own, source.id_column) if source.id_column else os.path.join(within, file) if file else None
            )
            of_image = tags.get(number, {})
            row["tags"] = [tag if isinstance(tag, str) else names.get(tag[0], str(tag[0])) for tag in of_image]
            row["image"] = images.read(file)
            row["original"] = text_of(url, source.original_column) or images.found
        yield row


def _number(value: Any) -> Any:
    """An id that can be a key of a dictionary: a number or text."""
    return value if isinstance(value, int | str) else str(value)


def columns(source: Source, shard: Shard) -> tuple[dict[str, str], list[str]]:
    """Fields of the file."""
    taken = {"id": source.id_column or "file_name", "image": "file_name", "tags": "categories and words of captions"}
    return taken, []


def count(source: Source, shards: Sequence[Shard]) -> tuple[int, bool]:
    return sum(section == "images" for shard in shards for section, _ in elements(Path(shard.path))), True


def elements(path: Path) -> Iterator[tuple[str, Any]]:
    """Elements of the arrays of one JSON object, with the array's name. Raises BadSource for what is not one."""
    decode = json.JSONDecoder().raw_decode
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        text, at = file.read(BLOCK), 0

        def peek() -> str:
            nonlocal text, at
            while True:
                while at < len(text) and text[at] in " \t\r\n,:":
                    at += 1
                if at < len(text):
                    return text[at]
                text, at = file.read(BLOCK), 0
                if not text:
                    raise BadSource(f"{path} is cut short, or still being copied")

        def value() -> Any:
            nonlocal text, at
            peek()
            while True:
                try:
                    element, end = decode(text, at)
                    if end < len(text):
                        at = end
                        return element
                    reason: Exception = ValueError("cut short")
                except (ValueError, RecursionError) as error:
                    reason = error
                more = file.read(BLOCK) if len(text) - at < MAX_LINE else ""
                if not more:
                    raise BadSource(f"{path} is no COCO JSON: {one_line(reason, 100)}")
                text, at = text[at:] + more, 0

        if peek() != "{":
            raise BadSource(f"{path} is no COCO JSON: it does not begin with a brace")
        at += 1
        while peek() != "}":
            name = str(value())
            if peek() != "[":
                value()
                continue
            at += 1
            while peek() != "]":
                yield name, value()
            at += 1


def recognizes(contents: Contents) -> bool:
    return any(map(is_coco, contents.documents))


READERS = {"coco": Reader(find, read, count, columns, recognizes=recognizes)}
