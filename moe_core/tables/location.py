"""Where a data set lies: in a folder, whose locks are files beside it, or in a bucket (bucket.py).

Both give the same promises: rows of a shard are replaced in one commit, by any number of processes at once, and a
killed writer leaves nothing visible.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import pyarrow as pa

from moe_core.store.bucket import Bucket
from moe_core.store.files import fsync
from moe_core.store.hashing import file_hash
from moe_core.store.layout import Layout
from moe_core.store.locks import exclusive, shared
from moe_core.store.protocols import ArtifactStore
from moe_core.tables.bucket import BucketTable
from moe_core.tables.paths import lance_path

T = TypeVar("T")
Check = Callable[[], None]  # raises Overtaken where others took this process for dead


class Table(Protocol):
    """A data set; equal ones lie at the same place. str() is how messages name it."""

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str:
        """Of the data set among those of the study, such as posts.lance."""

    @property
    def uri(self) -> str:
        """What lance opens; another one where another data set took its place."""

    @property
    def folder(self) -> Path:
        """A local folder for what is being written."""

    def exists(self) -> bool:
        """Whether there is a data set: one whose first commit failed, or was killed, is none."""

    def open(self, version: int | None = None) -> Any:
        """A version of it, or the latest. Raises ValueError where there is none."""

    def create(self, schema: pa.Schema) -> None:
        """Creates it, empty. Raises CommitConflictError where another process did."""

    def swap(self, base: Any, removed: Sequence[int], new: Sequence[Any]) -> Any:
        """Commits `new` fragments in the place of those with the ids `removed`; returns the version that has them.

        Raises CommitConflictError where others preempted it since the version `base`.
        """

    def restart(self, base: Any, schema: pa.Schema) -> None:
        """Commits that there are no rows and other columns. Raises CommitConflictError as `swap` does."""

    def widen(self, base: Any, schema: pa.Schema) -> None:
        """Commits the same rows with more columns at the end, null in all. Raises as `swap` does."""

    def fence(self, check: Check) -> None:
        """Refuses what writers commit that were taken for dead and wake up: their next try asks their own check.

        To be called inside `cleaning`, with its check. Raises CommitConflictError where one of them was faster.
        """

    def scratch(self, schema: pa.Schema) -> AbstractContextManager[Path]:
        """A local data set into which lance writes fragments."""

    def keep(self, files: Mapping[Path, str]) -> None:
        """Makes data files from `scratch` those of the data set, under these names; no version has them yet."""

    def data_file_hash(self, file: str) -> str | None:
        """SHA-256 of a data file's bytes; None where there is none."""

    def ask(self, request: Callable[[], T]) -> T:
        """What lance answers to a request that may be repeated; where its storage fails, an error that says so."""

    def streaming(self) -> AbstractContextManager[None]:
        """Turns errors of lance where its storage fails into such as say so; nothing is repeated."""

    def committing(self) -> AbstractContextManager[None]:
        """Held while a process commits or moves tags."""

    def writing(self) -> AbstractContextManager[Check]:
        """Held with others while rows are written; gives what is to be asked before they are committed."""

    def cleaning(self) -> AbstractContextManager[Check]:
        """Held alone while files are removed. Raises LockHeld while rows are written."""


class Tables(NamedTuple):
    """The data sets that all shards share; shards are replaced in both."""

    posts: Table
    rejects: Table


def tables_of(store: ArtifactStore) -> Tables:
    """Those of a study."""
    if isinstance(store.place, Bucket):
        names, folder = (path.name for path in store.layout.tables), store.layout.scratch
        return Tables(*(BucketTable(store.place, name, folder) for name in names))
    return tables_in(store.root)


def tables_in(root: Path) -> Tables:
    """Those of a study that lies in a folder."""
    return Tables(*map(LocalTable, Layout(root).tables))


def as_new(data: Any) -> list[Any]:
    """The fragments of a version for another, which numbers them itself."""
    return [replace(fragment.metadata, id=0) for fragment in data.get_fragments()]


def unchecked() -> None:
    """A lock of a file cannot be lost."""


@dataclass(frozen=True)
class LocalTable:
    """A data set in a folder, on this machine or on a disk that several share."""

    location: Path

    def __str__(self) -> str:
        return str(self.location)

    @property
    def name(self) -> str:
        return self.location.name

    @property
    def uri(self) -> str:
        return lance_path(self.location)

    @property
    def folder(self) -> Path:
        return self.location.parent

    def exists(self) -> bool:
        return any((self.location / "_versions").glob("*.manifest"))

    def open(self, version: int | None = None) -> Any:
        import lance

        return lance.dataset(self.uri, version=version)

    def create(self, schema: pa.Schema) -> None:
        import lance

        lance.write_dataset(schema.empty_table(), self.uri, mode="create", data_storage_version="stable")

    def swap(self, base: Any, removed: Sequence[int], new: Sequence[Any]) -> Any:
        import lance

        change = lance.LanceOperation.Update(removed_fragment_ids=list(removed), new_fragments=list(new))
        return lance.LanceDataset.commit(self.uri, change, read_version=base.version)

    def restart(self, base: Any, schema: pa.Schema) -> None:
        import lance

        lance.LanceDataset.commit(self.uri, lance.LanceOperation.Overwrite(schema, []))

    def widen(self, base: Any, schema: pa.Schema) -> None:
        import lance

        change = lance.LanceOperation.Overwrite(schema, as_new(base))
        lance.LanceDataset.commit(self.uri, change, read_version=base.version)

    def fence(self, check: Check) -> None:
        """Nobody is taken for dead who is not: a lock of a file ends with its process."""

    @contextmanager
    def scratch(self, schema: pa.Schema) -> Iterator[Path]:
        yield self.location

    def keep(self, files: Mapping[Path, str]) -> None:
        for written, name in files.items():
            fsync(written)
            written.rename(self.location / "data" / name)
        if files:
            fsync(self.location / "data")

    def data_file_hash(self, file: str) -> str | None:
        path = self.location / "data" / file
        return file_hash(path) if path.is_file() else None

    def ask(self, request: Callable[[], T]) -> T:
        return request()

    def streaming(self) -> AbstractContextManager[None]:
        return nullcontext()

    def committing(self) -> AbstractContextManager[None]:
        return exclusive(self.location.with_name(f".{self.name}.lock"))

    @contextmanager
    def writing(self) -> Iterator[Check]:
        with shared(self._writers):
            yield unchecked

    @contextmanager
    def cleaning(self) -> Iterator[Check]:
        with exclusive(self._writers, wait=False):
            yield unchecked

    @property
    def _writers(self) -> Path:
        return self.location.with_name(f".{self.name}.writers")
