"""Leases in a folder and in a bucket: one holder, a dead one followed, a stopped one told that it was overtaken."""

import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers import builders
from helpers.builders import QUICK
from moe_core.errors import LockHeld, Overtaken
from moe_core.processes import this_process
from moe_core.store.leases import Lease, Pace, exclusive, holder, shared
from moe_core.store.locks import Holder

NAME = "expert/e000/.lease-v1"

pytestmark = pytest.mark.usefixtures("no_process_is_left")


def parts(place):
    return [entry.name.removeprefix(f"{NAME}/") for entry in place.names(NAME)]


def test_one_holds_it_and_others_know_who(place):
    assert holder(place, NAME) is None
    me = Holder(socket.gethostname(), this_process(), "run 1a2b-3c4d", 3.0)
    with exclusive(place, NAME, who=me, pace=QUICK) as lease:
        lease.check()
        assert holder(place, NAME) == me
        held = rf"is held by process {os.getpid()} on {me.host} \(run 1a2b\): .* try again"
        with pytest.raises(LockHeld, match=held), exclusive(place, NAME, wait=False, pace=QUICK):
            pass
    assert holder(place, NAME) is None
    with exclusive(place, NAME, wait=False, pace=QUICK):
        assert holder(place, NAME).host == socket.gethostname()


def test_those_who_wait_follow_one_another_and_are_told_for_whom(place):
    inside, told, order = threading.Lock(), [], []

    def hold(number):
        with exclusive(place, NAME, on_wait=told.append, pace=QUICK) as lease:
            assert inside.acquire(blocking=False)
            order.append((number, lease.generation))
            time.sleep(0.05)
            inside.release()

    threads = [threading.Thread(target=hold, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in order) == [0, 1, 2, 3]
    assert {one.process for one in told} - {""} == {this_process()}
    assert [generation for _, generation in order] == [1, 2, 3, 4]
    assert parts(place) == ["000004", "000004.end"], "earlier generations are gone"


def test_an_error_inside_gives_it_up(place):
    with pytest.raises(LockHeld, match="of another thing"), exclusive(place, NAME, pace=QUICK):
        raise LockHeld("of another thing")
    assert holder(place, NAME) is None


def moved(place, record):
    """As if the process that wrote a record were one of another machine."""
    said = json.loads(place.read(record))
    place.write(record, json.dumps(said | {"process": said["process"][:-8] + "0123abcd"}).encode())


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_dead_holder_is_followed_at_once_and_one_of_another_machine_after_its_silence(place, elsewhere):
    process = builders.start(place, "", hold=NAME)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(LockHeld), exclusive(place, NAME, wait=False, pace=QUICK):
        pass
    process.kill()
    process.communicate()
    if elsewhere:
        moved(place, f"{NAME}/000001")
        before = time.monotonic()
        assert holder(place, NAME, QUICK).is_elsewhere
        while holder(place, NAME, QUICK):
            time.sleep(QUICK.wait)
        assert time.monotonic() - before >= QUICK.ttl, "who only asks sees it die, too"
    else:
        assert holder(place, NAME, Pace(ttl=3600)) is None
    before = time.monotonic()
    with exclusive(place, NAME, wait=False, pace=QUICK if elsewhere else Pace(ttl=3600)) as lease:
        assert lease.generation == 2
        if elsewhere:
            assert time.monotonic() - before >= QUICK.ttl


def test_a_stopped_holder_that_wakes_up_is_told(bucket):
    process = builders.start(bucket, "", hold=NAME)
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGSTOP)
    with exclusive(bucket, NAME, pace=QUICK) as lease:
        process.send_signal(signal.SIGCONT)
        said, errors = process.communicate("check\n", timeout=60)
        assert said.startswith(f"Overtaken {bucket.uri}/{NAME}: this process was silent for too long"), errors
        assert f"and process {os.getpid()} on {socket.gethostname()} took over" in said
        lease.check()
        assert lease.generation == 2
    lease.check()


@pytest.mark.soak
def test_a_holder_that_works_for_long_is_not_overtaken(bucket):
    """For longer than SeaweedFS now and then waits for itself, some 5 seconds."""
    pace = Pace(beat=0.5, ttl=10, wait=0.5)
    with exclusive(bucket, NAME, pace=pace) as lease:
        for _ in range(3):
            with pytest.raises(LockHeld), exclusive(bucket, NAME, wait=False, pace=pace):
                pass
            time.sleep(pace.ttl / 2)
        lease.check()
        assert lease.generation == 1


class Stale:
    """A place as it was seen before others came: the first looks find nothing."""

    def __init__(self, place):
        self.place, self.seen = place, 0

    def __getattr__(self, name):
        return getattr(self.place, name)

    def names(self, folder):
        self.seen += 1
        return self.place.names(folder) if self.seen > 3 else iter(())


def test_an_earlier_generation_that_is_taken_once_more_holds_nothing(bucket):
    """As by one who saw the lease free, slept, and woke up when the records of those before had been removed."""
    for _ in range(2):
        with exclusive(bucket, NAME, pace=QUICK):
            pass
    with exclusive(bucket, NAME, pace=QUICK) as lease:
        with pytest.raises(LockHeld), exclusive(Stale(bucket), NAME, wait=False, pace=QUICK):
            pass
        assert "000001" in parts(bucket), "it was created"
        lease.check()
        with pytest.raises(Overtaken):
            Lease(bucket, NAME, f"{NAME}/000001", 1).check()


def test_a_damaged_record_still_holds(place):
    with exclusive(place, NAME, pace=QUICK):
        place.write(f"{NAME}/000001", b"[")
        assert holder(place, NAME) == Holder()
        with pytest.raises(LockHeld, match="is held by another process"), exclusive(place, NAME, False, pace=QUICK):
            pass


# Shared by some, or alone


def test_many_share_it_and_nobody_has_it_alone_meanwhile(place):
    with shared(place, NAME, pace=QUICK) as one, shared(place, NAME, pace=QUICK) as other:
        one.check()
        other.check()
        with pytest.raises(LockHeld, match="is held by"), exclusive(place, NAME, wait=False, pace=QUICK):
            pass
        one.check()
    with exclusive(place, NAME, wait=False, pace=QUICK) as alone:
        alone.check()


def test_who_wants_it_alone_waits_for_all_who_share_it_and_they_for_him(place):
    inside = Counter()

    def hold(how):
        with (shared if how == "with" else exclusive)(place, NAME, pace=QUICK) as lease:
            inside[how] += 1
            for _ in range(5):
                assert inside["alone"] == (how == "alone")
                assert not (inside["alone"] and inside["with"])
                time.sleep(0.02)
            lease.check()
            inside[how] -= 1

    with ThreadPoolExecutor(6) as threads:
        assert len([*threads.map(hold, ["with", "alone"] * 3)]) == 6
    assert not [part for part in parts(place) if part.startswith("with/")]


def test_one_who_shared_it_and_died_is_not_waited_for_and_one_who_wakes_up_is_told(bucket):
    dead, stopped = (builders.start(bucket, "", share=NAME) for _ in range(2))
    assert (dead.stdout.readline(), stopped.stdout.readline()) == ("held\n", "held\n")
    dead.kill()
    dead.communicate()
    stopped.send_signal(signal.SIGSTOP)
    before = time.monotonic()
    with exclusive(bucket, NAME, pace=QUICK):
        assert time.monotonic() - before >= QUICK.ttl, "the stopped one was waited for"
    stopped.send_signal(signal.SIGCONT)
    assert stopped.communicate("check\n", timeout=60)[0].startswith("Overtaken")
    with exclusive(bucket, NAME, wait=False, pace=QUICK):
        pass
