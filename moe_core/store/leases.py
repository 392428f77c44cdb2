"""Who builds what right now, among machines: leases that a dead holder loses.

A lease is made of generations, each taken by a put-if-absent:

    <name>/000007           who holds it alone: taken once, by one
    <name>/000007.beat      overwritten every BEAT seconds while it is held
    <name>/000007.end       it was given up
    <name>/with/<id>        one of those who share it, with a beat of its own

The highest generation holds the lease. It may be followed by the next one when it was given up, when its process was
one of this machine and is gone, or when its beat did not change for TTL seconds by the clock of the process that waits:
no clocks of two machines are compared. A holder that was stopped for longer finds a higher generation when it wakes up.
It may write until it asks `check`, so a lease saves work, and what decides is the put-if-absent of a result. A process
that shares a lease, and one that wants it alone, both write first and look then, so that one of them sees the other.

A store that is a folder has no leases but locks of files (locks.py), which end with their process.
"""

import json
import random
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field

from moe_core.errors import HardmoeError, LockHeld, Overtaken
from moe_core.failpoints import failpoint
from moe_core.processes import is_dead
from moe_core.store.blobs import Blobs
from moe_core.store.locks import Holder, Told, holder_of, nobody_is_told

BEAT, TTL = 10.0, 60.0  # seconds; a store that is slow or refuses for a while must not look like a death
QUICK_SECONDS = 5.0  # a beat that is late by so much is still one
WAIT_SECONDS = 2.0  # between two looks at a lease that another process holds


@dataclass(frozen=True)
class Pace:
    """Seconds between two beats, of silence until a lease is taken over, and between two looks of one who waits."""

    beat: float = BEAT
    ttl: float = TTL
    wait: float = WAIT_SECONDS


PACE = Pace()
_seen: dict[tuple[str, str], tuple["_State", float]] = {}  # leases that `holder` saw held, and since when they are so


@dataclass
class Lease:
    """What is held until its block ends. `generation` counts those who held it alone, from 1; -1 where it is shared."""

    place: Blobs
    name: str
    record: str  # own one
    generation: int

    def check(self) -> None:
        """Raises Overtaken where another process has the lease. To be asked before anything of worth is written."""
        state = _look(self.place, self.name)
        if not (state.generation == self.generation or self.record in state.sharing):
            raise Overtaken(
                f"{self.place.uri}/{self.name}: this process was silent for too long (stopped, or cut off from the "
                f"store), and {(holder(self.place, self.name) or Holder()).name} took over: it continues there"
            )


@contextmanager
def exclusive(
    place: Blobs,
    name: str,
    wait: bool = True,
    who: Holder | None = None,
    on_wait: Told = nobody_is_told,
    pace: Pace = PACE,
) -> Iterator[Lease]:
    """Holds a lease alone; waits while other processes have it, and calls `on_wait` once for each.

    Raises LockHeld where it is held and `wait` is False. That takes until the holder's next beat, and where it is
    dead the lease is taken after the time that its silence must last.
    """
    who = who or Holder.here()
    watched: dict[str, tuple[str, float]] = {}
    while True:
        _await_sharing(place, name, wait, on_wait, pace, watched)
        with _generation(place, name, wait, who, on_wait, pace) as lease:
            if _look(place, name).sharing.keys() <= watched.keys():  # nobody came since
                for record in watched:
                    place.remove(record)
                    place.remove(f"{record}.beat")
                yield lease
                return


@contextmanager
def shared(
    place: Blobs, name: str, who: Holder | None = None, on_wait: Told = nobody_is_told, pace: Pace = PACE
) -> Iterator[Lease]:
    """Holds a lease together with others; waits while a process holds it alone."""
    who = who or Holder.here()
    lease = Lease(place, name, f"{name}/with/{uuid.uuid4().hex}", -1)
    record = _record_of(who)
    place.create(lease.record, record)
    try:
        if not _look(place, name).is_free:
            place.remove(lease.record)
            with _generation(place, name, True, who, on_wait, pace):
                place.create(lease.record, record)
        with _beating(lease, pace):
            failpoint("lease.shared", name)
            yield lease
    finally:
        quick = _quick(place, pace)
        with suppress(HardmoeError):
            quick.remove(lease.record)
            quick.remove(f"{lease.record}.beat")


@contextmanager
def _generation(place: Blobs, name: str, wait: bool, who: Holder, on_wait: Told, pace: Pace) -> Iterator[Lease]:
    """Holds the highest generation."""
    number = _take(place, name, wait, who, on_wait, pace)
    lease = Lease(place, name, _numbered(name, number), number)
    try:
        with _beating(lease, pace):
            failpoint("lease.taken", name)
            yield lease
    finally:
        _give_up(lease, pace)


@contextmanager
def _beating(lease: Lease, pace: Pace) -> Iterator[None]:
    """Others see meanwhile that this process lives. No beat waits for long for the one before."""
    ended, quick = threading.Event(), _quick(lease.place, pace)

    def beat() -> None:
        count = 0
        while not ended.is_set():
            count += 1
            with suppress(HardmoeError):  # unreachable for a while: the next beat may get there in time
                quick.write(f"{lease.record}.beat", b"%d" % count)
            ended.wait(pace.beat)

    beats = threading.Thread(target=beat, daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join()


def holder(place: Blobs, name: str, pace: Pace = PACE) -> Holder | None:
    """Who holds a lease; None where nobody does, or who did is known to be dead.

    That is known at once of a process of this machine; of another one once this process has looked for TTL seconds.
    """
    now, state, lease = time.monotonic(), _look(place, name), (place.uri, name)
    if state.is_free:
        _seen.pop(lease, None)
        return None
    seen, since = _seen.get(lease, (None, 0.0))
    if seen != state:
        since = time.monotonic()
        _seen[lease] = state, since
    found = holder_of(place.read(_numbered(name, state.generation)))
    return None if now - since > pace.ttl or is_dead(found.process) else found


def silent(place: Blobs, names: Iterable[str], pace: Pace = PACE) -> set[str]:
    """Those of some leases that nobody holds, or whose holder is dead: known once each other one has had a beat, so
    after TTL seconds at most."""
    began, free = time.monotonic(), set[str]()
    waiting = {name: _look(place, name) for name in names}
    while waiting:
        for name, seen in [*waiting.items()]:
            state = _look(place, name)
            if holder(place, name, pace) is None or (state == seen and time.monotonic() - began > pace.ttl):
                free.add(name)
            if name in free or state != seen:
                del waiting[name]
        if waiting:
            _pause(pace)
    return free


@dataclass(frozen=True)
class _State:
    """A lease as it lies in its place: one request."""

    generation: int  # 0 where nobody ever held it
    is_free: bool
    beat: str  # changes with every beat
    sharing: Mapping[str, str] = field(compare=False)  # records of those who share it, and their beats


def _look(place: Blobs, name: str) -> _State:
    tags = {entry.name.removeprefix(f"{name}/"): entry.tag for entry in place.names(name)}
    sharing = [part for part in tags if part.startswith("with/") and not part.endswith(".beat")]
    latest = max((int(part) for part in tags if part.isdigit()), default=0)
    return _State(
        latest,
        not latest or f"{latest:06d}.end" in tags,
        tags.get(f"{latest:06d}.beat", ""),
        {f"{name}/{part}": tags.get(f"{part}.beat", "") for part in sharing},
    )


def _take(place: Blobs, name: str, wait: bool, who: Holder, on_wait: Told, pace: Pace) -> int:
    """Takes the next generation as soon as it may be taken; returns it."""
    record = _record_of(who)
    seen, since, other = _State(0, False, "", {}), 0.0, Holder()
    while True:
        now, state = time.monotonic(), _look(place, name)  # in this order: this process may be stopped, too
        if state.generation != seen.generation and not state.is_free:
            other = holder_of(place.read(_numbered(name, state.generation)))
            if wait and not is_dead(other.process):
                on_wait(other)
        if state.is_free or is_dead(other.process) or (state == seen and now - since > pace.ttl):
            mine = state.generation + 1
            # What was removed meanwhile could be created a second time: the highest one counts.
            if place.create(_numbered(name, mine), record) and _look(place, name).generation == mine:
                return mine
            continue
        if not wait and state != seen and since:
            raise _is_held(place, name, other)
        if state != seen:
            seen, since = state, time.monotonic()
        _pause(pace)


def _await_sharing(
    place: Blobs, name: str, wait: bool, on_wait: Told, pace: Pace, watched: dict[str, tuple[str, float]]
) -> None:
    """Returns when those who share a lease are gone or dead. `watched` has the dead then: beat, and since when."""
    others: dict[str, Holder] = {}
    while True:
        now, sharing = time.monotonic(), _look(place, name).sharing
        for record in watched.keys() - sharing.keys():
            del watched[record]
        for record, beat in sharing.items():
            if record not in others:
                others[record] = holder_of(place.read(record))
                if wait and not is_dead(others[record].process):
                    on_wait(others[record])
            if not wait and record in watched and watched[record][0] != beat:
                raise _is_held(place, name, others[record])
            if record not in watched or watched[record][0] != beat:
                watched[record] = beat, time.monotonic()
        if all(now - since > pace.ttl or is_dead(others[record].process) for record, (_, since) in watched.items()):
            return
        _pause(pace)


def _give_up(lease: Lease, pace: Pace) -> None:
    """Lets others take the lease at once, and removes the generations before; without this they wait for TTL."""
    place = _quick(lease.place, pace)
    with suppress(HardmoeError):
        place.write(f"{lease.record}.end", b"")
        for entry in place.names(lease.name):
            if entry.name < lease.record or entry.name == f"{lease.record}.beat":
                place.remove(entry.name)


def _quick(place: Blobs, pace: Pace) -> Blobs:
    """For requests that are not worth a long wait: another follows, or others find out by themselves."""
    return place.with_patience(max(pace.beat, QUICK_SECONDS))


def _pause(pace: Pace) -> None:
    time.sleep(pace.wait * random.uniform(0.5, 1))


def _numbered(name: str, generation: int) -> str:
    return f"{name}/{generation:06d}"


def _record_of(who: Holder) -> bytes:
    """Told from that of another attempt of the same process."""
    return json.dumps({**asdict(who), "attempt": uuid.uuid4().hex}).encode()


def _is_held(place: Blobs, name: str, who: Holder) -> LockHeld:
    return LockHeld(
        f"{place.uri}/{name} is held by {who.name}: an artifact is being built; try again when that run has ended",
        name,
    )
