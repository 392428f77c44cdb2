"""What a store must give, wherever its bytes lie: in the folder of `Store`, or in the bucket of `Objects`.
`open_store` alone chooses which one it is.

A second implementation keeps four promises. An artifact is complete or invisible. The first commit of a version wins.
A file is read at a local path, its bytes checked. A pointer is replaced whole. Who builds what is only advice that
saves work: two processes that build the same artifact both get the one that was committed first.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from moe_core.settings import Study
from moe_core.store.artifact import Artifact, Spec, StageOutput
from moe_core.store.blobs import Blobs
from moe_core.store.cache import GIB, Cache, default_folder
from moe_core.store.documents import Documents
from moe_core.store.layout import Layout
from moe_core.store.leftovers import Leftover
from moe_core.store.locks import Holder, Told
from moe_core.store.objects import Objects
from moe_core.store.places import place_of
from moe_core.store.store import Store
from moe_core.store.work import Work


class ArtifactStore(Protocol):
    """Finds, lists, commits and removes artifacts, and knows which are being built, on this machine or on another one
    that shares the store. Reads raise CorruptArtifact for a manifest that is damaged.

    `root` is a folder of this machine, with logs, Dagster's home and work under way, as `layout` names them; `place`
    is the bucket that holds what all machines share, None where that lies under `root`, too.
    """

    @property
    def place(self) -> Blobs | None: ...

    @property
    def uri(self) -> str:
        """Where the artifacts lie, as messages name it."""

    @property
    def root(self) -> Path: ...

    @property
    def layout(self) -> Layout: ...

    @property
    def documents(self) -> Documents:
        """Pointers, requests, the publication log and the list of takedowns."""

    def find(self, spec: Spec) -> Artifact | None:
        """The artifact of `spec`; None where it has not been built."""

    def find_all(self, specs: Sequence[Spec]) -> list[Artifact | None]:
        """As `find`, of many: where that takes a request each, many at once."""

    def get(self, asset: str, key: str | None, version: str) -> Artifact | None:
        """One version of an asset's partition; None where it is not there, or `version` is empty."""

    def exists(self, asset: str, key: str | None, version: str) -> bool:
        """Whether it is complete; its manifest may be damaged."""

    def listed(self, asset: str) -> list[tuple[str | None, str]]:
        """(key, version) of all complete artifacts of an asset, by names alone: their manifests may be damaged."""

    def versions(self, asset: str, key: str | None) -> list[Artifact]:
        """All complete versions of an asset's partition."""

    def everything(self, asset: str) -> list[Artifact]:
        """All complete artifacts of an asset, of keys that are gone too."""

    def keys(self, asset: str) -> list[str]:
        """Partition keys of an asset, of unfinished artifacts too."""

    def make(self, spec: Spec, write: Callable[[Path], StageOutput], replace: bool = False) -> Artifact:
        """Calls `write(folder)` with a local folder and commits what it wrote; returns what was committed first.

        With `replace` an existing artifact is replaced. Raises what `write` raises, and OSError; on a bucket also
        StorageFailed, and Overtaken where it is called inside `building` and another process builds it by then.
        """

    def work(self, spec: Spec) -> AbstractContextManager[Work]:
        """What earlier attempts left of an artifact that is being built, and where this one continues it."""

    def remove(self, artifact: Artifact) -> None:
        """Removes an artifact: a reader finds all of it or nothing."""

    def building(self, spec: Spec, by: str = "", on_wait: Told = ...) -> AbstractContextManager[object]:
        """Keeps others from building this artifact and from deleting any; waits while another process builds it.

        `by` tells others what builds it. Calls `on_wait` with each process that is waited for. Look for the artifact
        again inside the block.
        """

    def leftovers(self, assets: Iterable[str], every_process: bool = False) -> Iterator[Leftover]:
        """What interrupted processes left of unfinished artifacts. To be asked inside `deleting`.

        In a folder what a process of this machine writes stays, unless `every_process`.
        """

    def works(self, asset: str) -> Iterator[tuple[Leftover, str | None, str]]:
        """Checkpoints of an asset's artifacts, each with the key and the version of its artifact."""

    def remove_locks(self, assets: Iterable[str]) -> None:
        """Removes what tells who builds. To be called inside `deleting`: nobody does."""

    def builder(self, spec: Spec) -> Holder | None:
        """Who builds an artifact now; None where nobody does."""

    def keeping(self) -> AbstractContextManager[object]:
        """Keeps others from deleting artifacts."""

    def deleting(self, wait: bool = True) -> AbstractContextManager[object]:
        """Keeps others from building. Raises LockHeld where something is being built and `wait` is False."""


def open_store(study: Study, root: Path) -> ArtifactStore:
    """Where a study keeps its artifacts: the bucket that [store] names, else the folder `root`.

    Nothing is read, written or opened before something is asked of it, so a process may be forked in between.
    """
    if not study.store.uri:
        return Store(root)
    options = {"endpoint": study.store.endpoint} if study.store.endpoint else {}
    cache = Cache(default_folder(), int(study.store.cache_gib * GIB))
    return Objects(place_of(study.store.uri, options, cache), root)
