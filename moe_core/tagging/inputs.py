"""What is to be answered, in an order that is the same when the command is run again: image files, and rows of tables.

The image files of the arguments are listed on the disk first, so that memory does not grow with their number.
"""

import hashlib
import json
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple, Protocol

from moe_core.data.sources.registry import FORMATS
from moe_core.errors import MissingLibrary
from moe_core.serving.files import Skip, bytes_of, entries_of, no_images

TABLES = tuple(name for name, format in FORMATS.items() if format.suffixes and format.told_by_suffix)  # told by names
NAMED = 10  # files that are left out for one reason, that are named


class Record(NamedTuple):
    """One picture to answer, or a name that is left out."""

    name: str  # path of a file, id of a row
    table: str  # that has the row; empty for a file
    unit: int
    row: int  # records of the unit up to here, this one included
    skipped: str  # why it is left out by its name; empty for a picture
    image: bytes | memoryview | None  # bytes of a row's picture; None where there are none, and for a file
    problem: str  # why a row has no picture


class Unit(Protocol):
    """A part of the input."""

    @property
    def count(self) -> int | None:
        """Its records; None where their number is not known before they are read."""

    def records(self, number: int, after: int) -> Iterator[Record]:
        """Its records behind the first `after`, which are not read where that can be avoided."""

    @property
    def made_of(self) -> Any:
        """JSON that is the same where the records are."""


@dataclass
class Files:
    """Image files, as a list on the disk has them."""

    listing: Path
    digest: str  # of the paths of the images, in their order
    images: int
    skipped: dict[str, tuple[int, list[str]]] = field(default_factory=dict)  # by reason: how many, the first names

    @property
    def count(self) -> int:
        return self.images + sum(number for number, _ in self.skipped.values())

    @property
    def made_of(self) -> Any:
        return {"images": self.images, "digest": self.digest}

    def records(self, number: int, after: int) -> Iterator[Record]:
        with open(self.listing, encoding="ascii") as file:
            for row, line in enumerate(islice(file, after, None), after + 1):
                path, skipped = json.loads(line)
                yield Record(path, "", number, row, skipped, None, "")


def list_files(paths: Sequence[str], listing: Path, without: Container[str] = ()) -> Files:
    """Lists the files, and the image files of the folders, into a file. Raises BadSource for a folder without any."""
    digest, found = hashlib.sha256(), Files(listing, "", 0)
    with open(listing, "w", encoding="ascii") as file:
        for path in paths:
            before = found.images
            for each, why in entries_of(Path(path), without):
                file.write(json.dumps([each, why]) + "\n")
                if why:
                    number, names = found.skipped.get(why, (0, []))
                    found.skipped[why] = number + 1, [*names, each] if len(names) < NAMED else names
                else:
                    found.images += 1
                    digest.update(os.fsencode(each) + b"\0")
            if found.images == before:
                raise no_images(Path(path))
    found.digest = digest.hexdigest()
    return found


def open_inputs(
    arguments: Sequence[str], folder: Path, kind: str | None, columns: Mapping[str, str], without: Container[str] = ()
) -> list[Unit]:
    """The parts of the input in the order of the arguments. Lists of files go into `folder`; `settle` makes them those
    that are read. `kind` and `columns` are the format and the columns of tables, where they were given.

    Raises BadSource for a folder without a picture, and for a table that cannot be read.
    """
    units = list[Unit]()
    for table, some in groupby(arguments, lambda argument: is_table(argument, kind)):
        if not table:
            units.append(list_files(list(some), folder / f"files-{len(units)}.new", without))
            continue
        try:
            open_tables = resolve_name("moe_core.tagging.tables:open_tables")
        except ModuleNotFoundError as error:
            raise MissingLibrary(
                f"tables and tars are read by {error.name}, which is not installed: pip install 'hardmoe[pipeline]'"
            ) from None
        for argument in some:
            units += open_tables(argument, kind, columns)
    return units


def settle(units: Sequence[Unit]) -> None:
    """Makes the lists of files those that are read; a list that is there from a command that was stopped stays."""
    for unit in units:
        if isinstance(unit, Files):
            listing = unit.listing.with_suffix("")
            if listing.exists():
                unit.listing.unlink()
            else:
                unit.listing.replace(listing)
            unit.listing = listing


def is_table(path: str, kind: str | None) -> bool:
    """Whether an argument is read as a table or tar, by `kind` (--format) or by its name; or a folder of them, where
    it holds no image file."""
    if kind or "://" in path or os.path.isdir(os.path.join(path, "_versions")):
        return True
    if os.path.isdir(path):
        return not any(not why for _, why in entries_of(Path(path))) and _holds_tables(path)
    return path.lower().endswith(tuple(suffix for name in TABLES for suffix in FORMATS[name].suffixes))


def _holds_tables(folder: str) -> bool:
    suffixes = tuple(suffix for name in TABLES for suffix in FORMATS[name].suffixes)
    return any(
        name.lower().endswith(suffixes)
        for _, folders, names in os.walk(folder)
        for name in (*folders, *names)
        if name[0] not in "._"
    )


def records_of(units: Sequence[Unit], after: tuple[int, int] = (0, 0)) -> Iterator[Record]:
    """Records of all the units behind a place: (number of a unit, records of it)."""
    first, row = after
    for number in range(first, len(units)):
        yield from units[number].records(number, row if number == first else 0)


def image_of(record: Record) -> bytes:
    """The bytes of a record's image file. Raises Skip, Rejected or OSError where it has none."""
    if record.skipped or record.problem:
        raise Skip(record.problem)
    return bytes_of(Path(record.name)) if not record.table else bytes(record.image or b"")


def without_images(records: Iterable[Record]) -> list[Record]:
    """The records without the bytes of their pictures, which need no room once they are decoded."""
    return [record._replace(image=None) if record.image is not None else record for record in records]
