"""Experts in memory under one bound for all threads: read on demand, evicted least recently used first."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest

from torch import Tensor

from moe_core.errors import BadSetting

State = Mapping[str, Tensor]


@dataclass
class _Place:
    """One expert's place in memory, taken from the moment its reading begins."""

    state: State | None = None  # None while it is read
    users: int = 0  # threads that compute with it now


class ExpertCache:
    """Holds experts of at most `most_bytes` of files, those in use and those being read included.

    `sizes` has the bytes of each expert's file, `read` gives its weights. Threads share the bound: one waits for room
    only while it uses no expert itself, so none waits for ever. Raises BadSetting for a bound without room for two.
    """

    def __init__(self, sizes: Mapping[str, int], read: Callable[[str], State], most_bytes: int) -> None:
        largest = max(sizes.values())
        if most_bytes < 2 * largest:
            raise BadSetting(
                f"memory for {most_bytes:,} bytes of experts: wanted room for two, one in use and one that is being "
                f"read, and the largest has {largest:,} bytes: raise the bound (--memory)"
            )
        self.reads = 0  # from the disk, so far
        self.most_held_bytes = 0  # of files, at one time so far
        self._sizes, self._read, self.most_bytes = sizes, read, most_bytes
        self._held: OrderedDict[str, _Place] = OrderedDict()
        self._changed = threading.Condition()  # guards all of the above

    @property
    def held(self) -> tuple[str, ...]:
        """Experts in memory or being read, the least recently used first."""
        return tuple(self._held)

    @contextmanager
    def using(self, key: str) -> Iterator[State]:
        """An expert's weights, which stay in memory while inside; keep no reference to them afterwards.

        A thread must not enter this again while inside: it might wait for itself.
        """
        place = self._pinned(key)
        try:
            assert place.state is not None
            yield place.state
        finally:
            with self._changed:
                place.users -= 1
                self._changed.notify_all()

    def each(self, keys: Iterable[str], use: Callable[[str, State], None]) -> None:
        """`use(key, state)` for each of these experts, those in memory first; a thread reads the next one ahead."""
        with self._changed:
            order = sorted(keys, key=lambda key: key not in self._held)
        with ThreadPoolExecutor(1) as reader:
            coming: list[Future[None]] = []
            for key, following in zip_longest(order, order[1:]):
                wait(coming)  # what failed in it is read again, and fails here
                with self.using(key) as state:
                    coming = [reader.submit(self._read_ahead, following)] if following else []
                    use(key, state)
                    del state  # or it would outlive its place

    def _pinned(self, key: str) -> _Place:
        """The place of an expert that is in memory, and stays there until its `users` are down again."""
        with self._changed:
            while True:
                place = self._held.get(key)
                if place is not None and place.state is not None:
                    place.users += 1
                    self._held.move_to_end(key)
                    return place
                place = self._reserved(key) if place is None else None
                if place is not None:
                    place.users = 1
                    break
                self._changed.wait()  # until it is read, or there is room for it
        return self._filled(key, place)

    def _read_ahead(self, key: str) -> None:
        """Reads an expert if it is not held and there is room for it now."""
        with self._changed:
            place = None if key in self._held else self._reserved(key)
        if place is not None:
            self._filled(key, place)

    def _filled(self, key: str, place: _Place) -> _Place:
        """Reads an expert into the place that was taken for it; where that fails, the place is free again."""
        try:
            state = self._read(key)
        except BaseException:
            with self._changed:
                del self._held[key]
                self._changed.notify_all()
            raise
        with self._changed:
            place.state = state
            del state  # or it would outlive its place
            self.reads += 1
            self._changed.notify_all()
        return place

    def _reserved(self, key: str) -> _Place | None:
        """A place, after the least recently used that no thread uses or reads were let go of; None without room."""
        while self._bytes() + self._sizes[key] > self.most_bytes:
            free = next((k for k, place in self._held.items() if place.state is not None and not place.users), None)
            if free is None:
                return None
            self._held.pop(free).state = None
        place = self._held[key] = _Place()
        self.most_held_bytes = max(self.most_held_bytes, self._bytes())
        return place

    def _bytes(self) -> int:
        return sum(self._sizes[key] for key in self._held)
