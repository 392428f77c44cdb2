"""`hardmoe run` under SIGKILL: at every named point and at random moments (helpers/kills.py, in its own process)."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.kills import POINTS

HERE = Path(__file__).parent


def kills(folder, *options):
    seed = random.SystemRandom().randrange(10**6)
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    environment = {k: v for k, v in os.environ.items() if k != "HARDMOE_FAULT"} | {"PYTHONPATH": path}
    command = [sys.executable, str(HERE / "helpers" / "kills.py"), str(folder / "kills"), str(seed), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    print(seed, said)
    return said["done"]


def test_killed_at_every_named_point_and_at_six_random_moments_it_ends_in_the_same_results(tmp_path):
    done = kills(tmp_path, "--points", len(POINTS), "--random", 6, "--locked")
    assert set(POINTS) <= done.keys()
    assert sum(count for what, count in done.items() if what.startswith("random")) >= 6
    assert done["graphs completed"] >= 2


@pytest.mark.soak
def test_two_hundred_kills_of_the_command_itself(tmp_path):
    done = kills(tmp_path, "--points", 5 * len(POINTS), "--random", 200 - 5 * len(POINTS), "--command")
    assert set(POINTS) <= done.keys()
    assert sum(count for what, count in done.items() if what in POINTS or what.startswith("random")) >= 60
