"""Builders that are killed and stopped at random moments, behind a server that refuses and loses answers."""

import random
import time

import pytest

from helpers import builders, seaweed
from helpers.builders import CONTINUE, STOP, is_right, spec, start
from helpers.flaky import flaky
from moe_core.store.objects import Objects

KEYS = ("e000", "e001", "e002")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with seaweed.serving(tmp_path_factory.mktemp("seaweed")) as one:
        yield one


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("with_lease", [True, False])
def test_whatever_happens_each_has_one_right_result(seed, with_lease, server, tmp_path):
    draw, bucket, attempts = random.Random(seed), server.place(tmp_path), {key: set() for key in KEYS}
    with flaky(server.endpoint, seed, share=0.2) as proxy:
        for number in range(5):
            processes = [
                (key, start(bucket, tmp_path / f"{n}", key, endpoint=proxy.endpoint, pause=0.1, with_lease=with_lease))
                for n, key in enumerate(KEYS * 2)
            ]
            time.sleep(draw.uniform(0.2, 3))
            for _, process in draw.sample(processes, 3):
                process.kill()
            _, stopped = draw.choice(processes)
            stopped.send_signal(STOP)
            time.sleep(draw.uniform(0.1, 4))
            stopped.send_signal(CONTINUE)
            for key, process in processes:
                out, errors = process.communicate(timeout=200)
                assert process.returncode in (0, -9), (number, errors)
                last = out.splitlines()[-1:] or [""]
                if last[0].startswith("made "):
                    attempts[key].add(last[0].split()[1])
            for key in KEYS:
                there = Objects(bucket).find(spec(key))
                assert there is None or is_right(there)
                assert attempts[key] <= ({there.attempt} if there else set()), "a commit was lost, or there were two"
    for key in KEYS:
        assert is_right(builders.build(bucket, key, tmp_path / "scratch"))
    garbage = Objects(bucket).garbage("expert")
    assert garbage.unfinished == []
    for name in garbage.lost:
        bucket.remove(name)
    names = [entry.name for entry in bucket.names("expert") if "/.lease-" not in entry.name]
    assert len(names) == 3 * len(KEYS)
    print(proxy.counts)
