"""Who builds what right now, among machines: exclusive leases that a dead holder loses.

On an object store a lease is made of generations, each taken by a put-if-absent:

    <name>/000007           who holds it: taken once, by one
    <name>/000007.beat      overwritten every BEAT seconds while it is held
    <name>/000007.end       it was given up

The highest generation holds the lease. It may be followed by the next one when it was given up, or when its beat did
not change for TTL seconds by the clock of the process that waits: no clocks of two machines are compared. A holder that
was stopped for longer finds a higher generation when it wakes up. It may write until it asks `check`, so a lease saves
work, and what decides is the put-if-absent of a result. In a folder a lease is a lock of the file `name`, which ends
with its process.
"""

import json
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass

from moe_core.errors import HardmoeError, LockHeld, Overtaken
from moe_core.failpoints import failpoint
from moe_core.processes import this_process
from moe_core.store import locks
from moe_core.store.blobs import Blobs, Folder

BEAT, TTL = 10.0, 60.0  # seconds; a store that is slow or refuses for a while must not look like a death
WAIT_SECONDS = 2.0  # between two looks at a lease that another process holds


@dataclass(frozen=True)
class Pace:
    """Seconds between two beats, of silence until a lease is taken over, and between two looks of one who waits."""

    beat: float = BEAT
    ttl: float = TTL
    wait: float = WAIT_SECONDS


PACE = Pace()


@dataclass(frozen=True)
class Holder:
    """A process that holds a lease."""

    host: str
    process: str  # see processes.py
    run: str  # of Dagster, "" without one
    since: float  # seconds since 1970 by its own clock: for people, not for comparing

    @staticmethod
    def here(run: str = "") -> "Holder":
        """This process."""
        return Holder(socket.gethostname(), this_process(), run, time.time())


NOBODY = Holder("", "", "", 0.0)  # a record that cannot be read


@dataclass
class Lease:
    """What `exclusive` gives: held until its block ends. `generation` counts the holders, from 1; 0 in a folder."""

    place: Blobs
    name: str
    generation: int

    def check(self) -> None:
        """Raises Overtaken where another process has the lease. To be asked before anything of worth is written."""
        if self.generation:
            latest = _look(self.place, self.name).generation
            if latest != self.generation:
                raise Overtaken(
                    f"{self.place.uri}/{self.name}: this process was silent for too long (stopped, or cut off from the "
                    f"store), and {_words(holder(self.place, self.name))} took over: it continues there"
                )


@contextmanager
def exclusive(
    place: Blobs,
    name: str,
    wait: bool = True,
    who: Holder | None = None,
    on_wait: Callable[[Holder], None] = lambda holder: None,
    pace: Pace = PACE,
) -> Iterator[Lease]:
    """Holds a lease alone; waits while another process does, and calls `on_wait` once for each such process.

    Raises LockHeld where it is held and `wait` is False. That takes until the holder's next beat, and where it is
    dead the lease is taken after the time that its silence must last.
    """
    holder = who or Holder.here()
    if isinstance(place, Folder):
        with _in_folder(place, name, wait, holder, on_wait, pace):
            yield Lease(place, name, 0)
        return
    lease = Lease(place, name, _take(place, name, wait, holder, on_wait, pace))
    ended = threading.Event()
    quick = Lease(place.with_patience(pace.beat), name, lease.generation)  # no beat waits for the one before
    beats = threading.Thread(target=_beat, args=(quick, ended, pace.beat), daemon=True)
    beats.start()
    try:
        failpoint("lease.taken", name)
        yield lease
    finally:
        ended.set()
        beats.join()
        _give_up(quick)


def holder(place: Blobs, name: str) -> Holder | None:
    """Who holds a lease, alive or not known to be dead yet; None where nobody does."""
    if isinstance(place, Folder):
        if not place.path(name).exists():
            return None
        try:
            with locks.exclusive(place.path(name), wait=False):
                return None
        except LockHeld:
            return _holder_in(place.read(name))
    state = _look(place, name)
    return None if state.is_free else _holder_in(place.read(_record(name, state.generation)))


@dataclass(frozen=True)
class _State:
    """A lease as it lies in an object store: one request."""

    generation: int  # 0 where nobody ever held it
    is_free: bool
    beat: str  # changes with every beat


def _look(place: Blobs, name: str) -> _State:
    tags = {entry.name.removeprefix(f"{name}/"): entry.tag for entry in place.names(name)}
    generations = [int(part) for part in tags if part.isdigit()]
    if not generations:
        return _State(0, True, "")
    latest = max(generations)
    return _State(latest, f"{latest:06d}.end" in tags, tags.get(f"{latest:06d}.beat", ""))


def _take(place: Blobs, name: str, wait: bool, who: Holder, on_wait: Callable[[Holder], None], pace: Pace) -> int:
    """Takes the next generation as soon as it may be taken; returns it."""
    record = json.dumps({**asdict(who), "attempt": uuid.uuid4().hex}).encode()
    seen, since, reported = _look(place, name), time.monotonic(), 0
    while True:
        now, state = time.monotonic(), _look(place, name)  # in this order: this process may be stopped, too
        if state.is_free or (state == seen and now - since > pace.ttl):
            mine = state.generation + 1
            # What was removed meanwhile could be created a second time: the highest one counts.
            if place.create(_record(name, mine), record) and _look(place, name).generation == mine:
                return mine
            continue
        if not wait and state != seen:
            raise _is_held(place, name, _holder_in(place.read(_record(name, state.generation))))
        if state != seen:
            seen, since = state, time.monotonic()
        if wait and state.generation != reported:
            reported = state.generation
            on_wait(_holder_in(place.read(_record(name, state.generation))))
        time.sleep(pace.wait * random.uniform(0.5, 1))


def _beat(lease: Lease, ended: threading.Event, seconds: float) -> None:
    count = 0
    while not ended.is_set():
        count += 1
        with suppress(HardmoeError):  # unreachable for a while: the next beat may get there in time
            lease.place.write(f"{_record(lease.name, lease.generation)}.beat", b"%d" % count)
        ended.wait(seconds)


def _give_up(lease: Lease) -> None:
    """Lets others take the lease at once, and removes the generations before; without this they wait for TTL."""
    own = _record(lease.name, lease.generation)
    with suppress(HardmoeError):
        lease.place.write(f"{own}.end", b"")
        for entry in lease.place.names(lease.name):
            if entry.name < own or entry.name == f"{own}.beat":
                lease.place.remove(entry.name)


def _record(name: str, generation: int) -> str:
    return f"{name}/{generation:06d}"


def _holder_in(record: bytes | None) -> Holder:
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        known = json.loads(record or b"")
        return Holder(str(known["host"]), str(known["process"]), str(known["run"]), float(known["since"]))
    return NOBODY


def _words(who: Holder | None) -> str:
    if not who or not who.host:
        return "another process"
    return f"process {who.process} on {who.host}" + (f" (run {who.run})" if who.run else "")


@contextmanager
def _in_folder(
    place: Folder, name: str, wait: bool, who: Holder, on_wait: Callable[[Holder], None], pace: Pace
) -> Iterator[None]:
    path = place.path(name)
    reported: Holder | None = None
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(locks.exclusive(path, wait=False))
                break
            except LockHeld:
                other = _holder_in(place.read(name))
            if not wait:
                raise _is_held(place, name, other)
            if other != reported:
                reported = other
                on_wait(other)
            time.sleep(min(pace.wait, locks.WAIT_SECONDS))
        path.write_text(json.dumps(asdict(who)))
        failpoint("lease.taken", name)
        yield


def _is_held(place: Blobs, name: str, who: Holder) -> LockHeld:
    return LockHeld(
        f"{place.uri}/{name} is held by {_words(who)}: an artifact is being built; try again when that run has ended",
        name,
    )
