"""What a version of a data set holds: fragments by shard, from the manifest alone. And the locks of a data set.

A data file is named after its shard, so that no file is opened to tell whose rows a fragment holds.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from moe_core.errors import CorruptArtifact
from moe_core.store.hashing import file_hash
from moe_core.tables.paths import lance_path

NAME_CHARACTERS = 40  # of the SHA-256 in a data file's name


@dataclass(frozen=True)
class Piece:
    """A fragment of one version, and where its rows lie among all of that version."""

    fragment: int
    file: str  # name of its data file, which tells its bytes: equal names are equal rows
    first: int
    rows: int


Pieces = dict[str, list[Piece]]  # by shard, in the order of the rows


def exists(path: Path) -> bool:
    """Whether there is a data set: a folder whose first commit failed, or was killed, is none."""
    return any((path / "_versions").glob("*.manifest"))


def name_of(shard: str, file: Path) -> str:
    """The name of a data file of a shard, by the SHA-256 of its bytes: lance has no checksum of its own."""
    return f"{shard}.{file_hash(file)[:NAME_CHARACTERS]}.lance"


def pieces_of(table: Any) -> Pieces:
    """The fragments of a version. Raises CorruptArtifact for a data file that is named otherwise."""
    pieces: Pieces = {}
    first = 0
    for fragment in table.get_fragments():
        metadata = fragment.metadata
        file = metadata.files[0]._path  # `path` makes a class each time: four times as slow for ten thousand shards
        shard = file.removesuffix(".lance").rpartition(".")[0]
        if not shard:
            raise CorruptArtifact(
                f"{table.uri} has the data file {file}, wanted <shard>.<SHA-256>.lance: it was written by another "
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


def fragments(table: Any, pieces: Pieces, shard: str) -> list[Any]:
    return [table.get_fragment(piece.fragment) for piece in pieces.get(shard, ())]


def latest(path: Path) -> Any:
    """The latest version of a data set."""
    import lance

    return lance.dataset(lance_path(path))


def latest_pieces(path: Path) -> Pieces:
    """The fragments of the latest version; none where there is no data set."""
    return pieces_of(latest(path)) if exists(path) else {}


@lru_cache(maxsize=8)
def _opened(path: str, version: int) -> tuple[Any, Pieces]:
    import lance

    table = lance.dataset(path, version=version)
    return table, pieces_of(table)


@lru_cache(maxsize=8)
def _tags(path: str) -> Any:
    """Tags of a data set, from any version: lance reads them again each time."""
    import lance

    return lance.dataset(path).tags


def at(path: Path, version: int | str) -> tuple[Any, Pieces]:
    """A version by its number or Lance tag, and its fragments. Raises CorruptArtifact where there is none."""
    try:
        if isinstance(version, str):
            version = int(_tags(lance_path(path)).get_version(version))
        return _opened(lance_path(path), version)
    except (ValueError, OSError) as error:
        what = f"Lance tag {version}" if isinstance(version, str) else f"version {version}"
        raise CorruptArtifact(f"{path} has no {what} (was it cleaned up?): ingest again; {error}", path) from None


def damage(path: Path, lance_tag: str, shard: str, rows: int, checked: dict[str, bool]) -> list[str]:
    """Lines on what is wrong with the rows of a shard at a Lance tag, of which `rows` were written. Reads data files.

    Lance itself does not notice a flipped byte in a pixel. `checked` remembers files from one call to the next, since
    tags share them.
    """
    try:
        table, pieces = at(path, lance_tag)
        tagged = table.tags.list()[lance_tag]["metadata"].get("rows")
    except (ValueError, OSError, KeyError) as error:
        return [f"{path}: {error}"]
    problems = []
    of_shard = pieces.get(shard, [])
    if tagged != contents(pieces, shard) or sum(piece.rows for piece in of_shard) != rows:
        problems.append(f"{path} has not the {rows} rows of {shard} that Lance tag {lance_tag} was put on")
    for piece in of_shard:
        file = path / "data" / piece.file
        if piece.file not in checked:
            checked[piece.file] = file.is_file() and name_of(shard, file) == piece.file
        if not checked[piece.file]:
            problems.append(f"{file} is not the file that was written (its name tells another SHA-256)")
    return problems


def forget_opened() -> None:
    """Closes cached versions, after some were removed."""
    _opened.cache_clear()
    _tags.cache_clear()


def commit_lock(path: Path) -> Path:
    """Lock that a process holds while it commits or moves tags."""
    return path.with_name(f".{path.name}.lock")


def writers_lock(path: Path) -> Path:
    """Lock that is shared while rows are written, and exclusive while files are removed."""
    return path.with_name(f".{path.name}.writers")
