"""A data set in a bucket, without a lock for its commits.

Lance commits a version by a put-if-absent of its manifest, and merges changes that do not touch the same fragments: two
that write a shard for the first time would both be in it. So a change is committed as all fragments of the version that
follows `base`, or not at all where another process committed since.

Data files are written to the local disk first, since their names tell their bytes. Who writes is known by a lease, so
that one who cleans up takes no file away that is about to be committed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from moe_core.errors import HardmoeError
from moe_core.failpoints import failpoint
from moe_core.store.bucket import Bucket
from moe_core.store.files import temporary_folder
from moe_core.store.leases import PACE, Pace, exclusive, shared
from moe_core.tables.paths import open_path

T = TypeVar("T")
PREEMPTED = "already exists", "commit conflict"  # what lance says to one of several that create a data set


class BucketTable:
    """A data set under a name in a bucket; `folder` is a local one, with room for the rows of a shard."""

    def __init__(self, place: Bucket, name: str, folder: Path, pace: Pace = PACE) -> None:
        self.place, self.name, self.folder, self.pace = place, name, folder, pace
        self.uri = f"{place.uri}/{name}"
        self._key = self.uri, place.endpoint

    def __str__(self) -> str:
        return self.uri

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketTable) and other._key == self._key

    def __hash__(self) -> int:
        return hash(self._key)

    def exists(self) -> bool:
        return any(entry.name.endswith(".manifest") for entry in self.place.names(f"{self.name}/_versions"))

    def open(self, version: int | None = None) -> Any:
        import lance

        options = self.place.storage_options()
        return self.ask(lambda: lance.dataset(self.uri, version=version, storage_options=options))

    def create(self, schema: pa.Schema) -> None:
        import lance
        from lance.commit import CommitConflictError

        how: dict[str, Any] = {
            "mode": "create",
            "data_storage_version": "stable",
            "storage_options": self.place.storage_options(),
        }
        try:
            self.ask(lambda: lance.write_dataset(schema.empty_table(), self.uri, **how))
        except OSError as error:
            if not any(words in str(error) for words in PREEMPTED):
                raise
            raise CommitConflictError(f"{self} was created by another process") from None

    def swap(self, base: Any, removed: Sequence[int], new: Sequence[Any]) -> Any:
        gone, fragments = set(removed), (fragment.metadata for fragment in base.get_fragments())
        kept = [replace(fragment, id=0) for fragment in fragments if fragment.id not in gone]  # numbered again
        return self._commit(base, base.schema, [*kept, *new])

    def restart(self, base: Any, schema: pa.Schema) -> None:
        self._commit(base, schema, [])

    def widen(self, base: Any, schema: pa.Schema) -> None:
        self._commit(base, schema, [replace(fragment.metadata, id=0) for fragment in base.get_fragments()])

    def fence(self, check: Callable[[], None]) -> None:
        if self.exists():
            data = self.open()
            check()
            self.swap(data, (), ())  # a version that follows the one that they write on

    def _commit(self, base: Any, schema: pa.Schema, fragments: list[Any]) -> Any:
        import lance
        from lance.commit import CommitConflictError

        change = lance.LanceOperation.Overwrite(schema, fragments)
        how: dict[str, Any] = {
            "read_version": base.version,
            "max_retries": 0,
            "storage_options": self.place.storage_options(),
        }
        try:
            return self.ask(lambda: lance.LanceDataset.commit(self.uri, change, **how))
        except RuntimeError as error:
            if ".manifest was not found" not in str(error):
                raise
            raise CommitConflictError(f"version {base.version} of {self} was cleaned up by another process") from None

    @contextmanager
    def scratch(self, schema: pa.Schema) -> Iterator[Path]:
        import lance

        with temporary_folder(self.folder) as folder:
            with open_path(folder / self.name) as path:  # else lance warns that there is none
                lance.write_dataset(schema.empty_table(), path, mode="create", data_storage_version="stable")
            yield folder / self.name

    def keep(self, files: Mapping[Path, str]) -> None:
        for written, name in files.items():
            failpoint("rows.uploading", name)
            self.place.upload(f"{self.name}/data/{name}", written)
            written.unlink()

    def data_file_hash(self, file: str) -> str | None:
        return self.place.hash(f"{self.name}/data/{file}")

    def committing(self) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def writing(self) -> Iterator[Any]:
        with shared(self.place, self._writers, pace=self.pace) as lease:
            yield lease.check

    @contextmanager
    def cleaning(self) -> Iterator[Any]:
        with exclusive(self.place, self._writers, wait=False, pace=self.pace) as lease:
            yield lease.check

    def ask(self, request: Callable[[], T]) -> T:
        return self.place.ask_lance(self.name, request)

    @contextmanager
    def streaming(self) -> Iterator[None]:
        try:
            yield
        except HardmoeError:
            raise
        except (OSError, ValueError) as error:
            if failure := self.place.failure(self.name, error):
                raise failure from None
            raise

    @property
    def _writers(self) -> str:
        return f".{self.name}.writers"
