"""What a version of a data set holds: fragments by shard, from the manifest alone.

A data file is named after its shard, so that no file is opened to tell whose rows a fragment holds.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from moe_core.errors import BadSetting, CorruptArtifact, HardmoeError, StorageFailed
from moe_core.tables.location import Table

NAME_CHARACTERS = 40  # of the SHA-256 in a data file's name


@dataclass(frozen=True)
class Piece:
    """A fragment of one version, and where its rows lie among all of that version."""

    fragment: int
    file: str  # name of its data file, which tells its bytes: equal names are equal rows
    first: int
    rows: int


Pieces = dict[str, list[Piece]]  # by shard, in the order of the rows


def name_of(shard: str, sha256: str) -> str:
    """The name of a data file of a shard, by the SHA-256 of its bytes: lance has no checksum of its own."""
    return f"{shard}.{sha256[:NAME_CHARACTERS]}.lance"


def pieces_of(data: Any) -> Pieces:
    """The fragments of a version. Raises CorruptArtifact for a data file that is named otherwise."""
    pieces: Pieces = {}
    first = 0
    for fragment in data.get_fragments():
        metadata = fragment.metadata
        file = metadata.files[0]._path  # `path` makes a class each time: four times as slow for ten thousand shards
        shard = file.removesuffix(".lance").rpartition(".")[0]
        if not shard:
            raise CorruptArtifact(
                f"{data.uri} has the data file {file}, wanted <shard>.<SHA-256>.lance: it was written by another "
                "program. Delete posts.lance and rejects.lance and ingest again"
            )
        pieces.setdefault(shard, []).append(Piece(fragment.fragment_id, file, first, metadata.num_rows))
        first += metadata.num_rows
    return pieces


def content_of(files: Iterable[str]) -> str:
    """Hash of the rows of a shard: of the names of its data files."""
    return hashlib.sha256(" ".join(files).encode()).hexdigest()[:20]


def contents(pieces: Pieces, shard: str) -> str:
    """Hash of the rows of a shard in a version."""
    return content_of(piece.file for piece in pieces.get(shard, ()))


def fragments(data: Any, pieces: Pieces, shard: str) -> list[Any]:
    return [data.get_fragment(piece.fragment) for piece in pieces.get(shard, ())]


def latest_pieces(table: Table) -> Pieces:
    """The fragments of the latest version; none where there is no data set."""
    return pieces_of(table.open()) if table.exists() else {}


@lru_cache(maxsize=8)
def _opened(table: Table, uri: str, version: int) -> tuple[Any, Pieces]:
    data = table.open(version)
    return data, pieces_of(data)


@lru_cache(maxsize=8)
def _tags(table: Table, uri: str) -> Any:
    """Tags of a data set, from any version: lance reads them again each time."""
    return table.open().tags


def tags_of(table: Table, data: Any) -> dict[str, Any]:
    """All tags of a data set, by their names; `data` is any version of it."""
    return table.ask(data.tags.list)


def at(table: Table, version: int | str) -> tuple[Any, Pieces]:
    """A version by its number or Lance tag, and its fragments. Raises CorruptArtifact where there is none."""
    try:
        if isinstance(version, str):
            version = int(table.ask(lambda: _tags(table, table.uri).get_version(version)))
        return _opened(table, table.uri, version)
    except HardmoeError:
        raise
    except (ValueError, OSError) as error:
        what = f"Lance tag {version}" if isinstance(version, str) else f"version {version}"
        raise CorruptArtifact(f"{table} has no {what} (was it cleaned up?): ingest again; {error}", table) from None


def damage(table: Table, lance_tag: str, shard: str, rows: int, checked: dict[str, bool]) -> list[str]:
    """Lines on what is wrong with the rows of a shard at a Lance tag, of which `rows` were written. Reads data files.

    Lance itself does not notice a flipped byte in a pixel. `checked` remembers files from one call to the next, since
    tags share them.
    """
    try:
        data, pieces = at(table, lance_tag)
        tagged = tags_of(table, data)[lance_tag]["metadata"].get("rows")
    except (BadSetting, StorageFailed):
        raise
    except (ValueError, OSError, KeyError) as error:
        return [f"{table}: {error}"]
    problems = []
    of_shard = pieces.get(shard, [])
    if tagged != contents(pieces, shard) or sum(piece.rows for piece in of_shard) != rows:
        problems.append(f"{table} has not the {rows} rows of {shard} that Lance tag {lance_tag} was put on")
    for piece in of_shard:
        if piece.file not in checked:
            sha256 = table.data_file_hash(piece.file)
            checked[piece.file] = sha256 is not None and name_of(shard, sha256) == piece.file
        if not checked[piece.file]:
            problems.append(
                f"{table}/data/{piece.file} is not the file that was written (its name tells another SHA-256)"
            )
    return problems


def forget_opened() -> None:
    """Closes cached versions, after some were removed."""
    _opened.cache_clear()
    _tags.cache_clear()
