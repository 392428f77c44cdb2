"""The world that planning looks at: read once, never changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from moe_core.data.sources.scan import Shard, Unready
from moe_core.data.takedowns import Takedowns
from moe_core.errors import HardmoeError
from moe_core.settings import Study


@dataclass(frozen=True)
class StudyState:
    """Settings, source, takedowns, pointers and requests of a study at one moment.

    `token` changes with anything but the source's files that could change a plan. What could not be read is kept as
    its error and raised where it is asked for: a study whose source is away can still be evaluated.
    """

    study: Study
    token: str
    takedowns: Takedowns
    pointers: Mapping[str, Any]  # "trunk", "partition": what is current; a HardmoeError where that is damaged
    requests: frozenset[str] = frozenset()  # "renew", "refit"
    publication: Any = None  # the log of decisions, or a HardmoeError
    experts: tuple[str, ...] = ()  # keys, in the order of the gate's numbers
    source: tuple[Shard, ...] | HardmoeError | OSError = ()
    unready: tuple[Unready, ...] = ()  # new files of the source that cannot be read as they are now

    @property
    def shards(self) -> tuple[Shard, ...]:
        """In the one order that every stage uses. Raises BadSource or OSError where the source could not be read."""
        if isinstance(self.source, Exception):
            raise self.source
        return self.source

    @cached_property
    def by_key(self) -> Mapping[str, Shard]:
        """The same by their keys."""
        return {shard.key: shard for shard in self.shards}

    def pointer(self, name: str) -> Any:
        """What is current of an asset, None where nothing is yet. Raises CorruptArtifact where that is damaged."""
        current = self.pointers.get(name)
        if isinstance(current, Exception):
            raise current
        return current

    def restricted(self, keys: frozenset[str]) -> StudyState:
        """The same study with some of its shards only, and nothing requested."""
        return replace(self, source=tuple(s for s in self.shards if s.key in keys), requests=frozenset())
