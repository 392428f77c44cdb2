"""Builders that are killed and stopped at random moments, behind a server that refuses and loses answers."""

import random
import time
from collections import defaultdict

import pytest

from helpers import builders
from helpers.builders import CONTINUE, STOP, is_right, spec, start
from helpers.flaky import flaky
from moe_core.store.objects import Objects

ROUNDS, KEYS = 5, 3

pytestmark = pytest.mark.usefixtures("no_process_is_left")


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("with_lease", [True, False])
def test_whatever_happens_each_has_one_right_result(seed, with_lease, server, tmp_path):
    draw, bucket, attempts = random.Random(seed), server.place(tmp_path), defaultdict(set)
    with flaky(server.endpoint, seed, share=0.2) as proxy:
        for number in range(ROUNDS):
            keys = [f"e{number}{n}" for n in range(KEYS)]
            processes = [
                (key, start(bucket, tmp_path / f"{n}", key, endpoint=proxy.endpoint, pause=0.1, with_lease=with_lease))
                for n, key in enumerate(keys * 2)
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
            for key in keys:
                there = Objects(bucket, builders.ROOT).find(spec(key))
                assert there is None or is_right(there)
                assert attempts[key] <= ({there.base} if there else set()), "a commit was lost, or there were two"
    every = [f"e{number}{n}" for number in range(ROUNDS) for n in range(KEYS)]
    for key in every:
        assert is_right(builders.build(bucket, key, tmp_path / "root"))
    garbage = Objects(bucket, builders.ROOT).garbage("expert")
    assert garbage.unfinished == []
    for name in garbage.lost:
        bucket.remove(name)
    names = [entry.name for entry in bucket.names("expert") if "/.lease-" not in entry.name]
    assert len(names) == 3 * len(every)
    print(proxy.counts)
