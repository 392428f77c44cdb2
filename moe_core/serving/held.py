"""Experts in memory under a bound: read when they are wanted, the least recently used gone first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import zip_longest

from torch import Tensor

State = Mapping[str, Tensor]


class Held:
    """At most `most` experts and `most_bytes` of their files: the one in use and one that is being read included.

    `sizes` has the bytes of each expert's file, `read` gives its weights. Raises ValueError for a bound without room
    for two.
    """

    def __init__(
        self, sizes: Mapping[str, int], read: Callable[[str], State], most: int | None, most_bytes: int
    ) -> None:
        most = max(2, len(sizes)) if most is None else most
        largest = max(sizes.values())
        if most < 2 or most_bytes < 2 * largest:
            raise ValueError(
                f"memory for {most} experts and {most_bytes:,} bytes: wanted room for two, one in use and one that is "
                f"being read, and the largest has {largest:,} bytes: raise the bound (--memory)"
            )
        self.reads = 0  # from the disk, so far
        self.most_held_bytes = 0  # of files, at one time so far
        self._sizes, self._read, self._most, self._most_bytes = sizes, read, most, most_bytes
        self._held: OrderedDict[str, State] = OrderedDict()

    def get(self, key: str) -> State:
        """An expert's weights; the one before stays held too."""
        if key not in self._held:
            self._make_room(key)
            self._put(key, self._read(key))
        self._held.move_to_end(key)
        return self._held[key]

    def each(self, keys: Iterable[str], use: Callable[[str, State], None]) -> None:
        """`use(key, state)` for each of these experts, those held already first; a thread reads the next meanwhile."""
        order = sorted(keys, key=lambda key: key not in self._held)
        with ThreadPoolExecutor(1) as reader:
            coming: Future[State] | None = None
            for key, following in zip_longest(order, order[1:]):
                if coming:
                    self._put(key, coming.result())
                state, coming = self.get(key), None
                if following and following not in self._held:
                    self._make_room(following)
                    coming = reader.submit(self._read, following)
                use(key, state)
                del state  # or it would outlive its place

    def _put(self, key: str, state: State) -> None:
        self._held[key] = state
        self.reads += 1
        self.most_held_bytes = max(self.most_held_bytes, self._bytes())

    def _make_room(self, key: str) -> None:
        """Lets go of the least recently used until `key` fits, which it does beside the last used at the latest."""
        while len(self._held) >= self._most or self._bytes() + self._sizes[key] > self._most_bytes:
            self._held.popitem(last=False)

    def _bytes(self) -> int:
        return sum(self._sizes[key] for key in self._held)
