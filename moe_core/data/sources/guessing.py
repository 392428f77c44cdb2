"""The format of a source by the names of its files, else by their content."""

import os
from pathlib import Path

from moe_core.data.image_files import IMAGE_SUFFIXES
from moe_core.data.sources.byproducts import foreign
from moe_core.data.sources.files import WILDCARD, files_at, is_remote, local
from moe_core.data.sources.reader import Contents, reader_of
from moe_core.data.sources.registry import FORMATS
from moe_core.errors import BadSource

DOCUMENTS = 50  # JSON files of a folder that readers look into
TABLE = "folder"  # beside data of another format a table is a note; it is also the format of any other folder


def absolute(uri: str) -> str:
    """A path as it is from everywhere; a URI as it is."""
    return uri if is_remote(uri) else str(local(uri).absolute())


def guess_format(uri: str) -> str:
    """The format of what lies at a path or URI, or 'synthetic' for that word. Raises BadSource for none or several."""
    if uri == "synthetic":
        return uri
    by_name = _format_of_name(uri.rstrip("/"))
    if by_name or is_remote(uri):
        return by_name or _guess_remote(uri)
    path = local(uri)
    if path.is_dir():
        return _guess_folder(path)
    if path.is_file():
        return _guess_file(path)
    if WILDCARD.search(uri):
        return guess_format(files_at(uri, ("",), "a file")[0].path)
    raise BadSource(f"nothing at {uri}: wanted {'; '.join(format.what for format in FORMATS.values())}")


def _format_of_name(name: str) -> str:
    """The format that a suffix tells; "" for none."""
    lower = name.lower()
    formats = (format for format in FORMATS.values() if format.told_by_suffix)
    by_suffix = next((format.name for format in formats if lower.endswith(format.suffixes)), "")
    if by_suffix == TABLE and (WILDCARD.search(name) or "yfcc" in lower.rpartition("/")[2]):
        return ""
    return by_suffix


def _guess_remote(uri: str) -> str:
    formats = {_format_of_name(file.name) for file in files_at(uri, ("",), "a file")} - {"", TABLE}
    if len(formats) == 1:
        return formats.pop()
    raise BadSource(f"{uri} holds {' and '.join(sorted(formats)) or 'no known format'}: choose one with --format")


def _guess_file(path: Path) -> str:
    contents = Contents(path, [str(path)] if path.suffix.lower() == ".json" else [])
    why = ""
    for name in FORMATS:
        try:
            if (recognizes := reader_of(name).recognizes) and recognizes(contents):
                return name
        except BadSource as error:
            why = why or f" (as {name}: {error})"
    raise BadSource(foreign(path) or f"{path} is of no known format{why}: choose one with --format")


def _guess_folder(path: Path) -> str:
    """By one pass over the names. Parquet beside tars is img2dataset's, and adds nothing to them."""
    stems: dict[str, set[str]] = {}  # of the files of each format
    documents, others, images_in_folders = list[str](), list[str](), False
    for folder, folders, names in os.walk(path):
        tables = [name for name in folders if name[0] not in "._" and _format_of_name(name)]  # of Lance
        folders[:] = [name for name in folders if name[0] not in "._" and name not in tables]
        for name in (*tables, *names):
            if name.lower().endswith(".json") and name[0] != "." and len(documents) < DOCUMENTS:
                documents.append(os.path.join(folder, name))  # also _annotations.coco.json
            if name[0] in "._":
                continue
            if marked := next((f for f in FORMATS.values() if f.marker and name.lower().startswith(f.marker)), None):
                return marked.name
            is_image = name.lower().endswith(IMAGE_SUFFIXES)
            images_in_folders |= is_image and folder != str(path)
            if not is_image and (format := _format_of_name(name)):
                stems.setdefault(format, set()).add(os.path.join(folder, name.split(".")[0]))
            elif refusal := foreign(os.path.join(folder, name)):
                others.append(refusal)
    if "webdataset" in stems and stems.get("parquet", set()) <= stems["webdataset"]:
        stems.pop("parquet", None)
    if len(stems) > 1:
        stems.pop(TABLE, None)
    if len(stems) > 1:
        raise BadSource(
            f"{path} holds {' and '.join(sorted(stems))}: choose one with --format, or name one kind with a glob"
        )
    if stems:
        return next(iter(stems))
    contents = Contents(path, documents, images_in_folders)
    for name in FORMATS:
        if (recognizes := reader_of(name).recognizes) and recognizes(contents):
            return name
    if others:
        raise BadSource(others[0] + (f" ({len(others) - 1} other files are not read either)" if others[1:] else ""))
    return TABLE
