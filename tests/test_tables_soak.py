"""Writers of shards in a bucket that are killed and stopped at random moments, behind a server that loses answers."""

import os
import random
import signal
import time
from contextlib import suppress

import pytest

from helpers.flaky import flaky
from helpers.processes import until
from helpers.shard_rows import OVERTAKEN, PROCESS, bucket_table, ids, put, put_in_bucket, running
from moe_core.errors import LockHeld
from moe_core.tables.cleaning import clean, search
from moe_core.tables.lance_tags import lance_tags
from moe_core.tables.shards import shards_in
from moe_core.tables.versions import damage, forget_opened, tags_of

SHARDS, ROUNDS, ROWS = "abc", 4, 5


def rows_of(shard, number):
    return [f"{shard}{number}-{row}" for row in range(ROWS)]


def writes(shard):
    return [(shard, rows_of(shard, number), f"posts.{shard}.{number}") for number in range(ROUNDS)]


def is_right(table):
    """Each tag has the rows of its round, each data file is what its name tells, and no shard is there in part."""
    forget_opened()
    for name, tag in tags_of(table, table.open()).items():
        _, shard, number = name.split(".")
        assert ids(table, name, shard) == rows_of(shard, number)
        if tag["metadata"]:  # else its writer is not done, or was killed
            assert damage(table, name, shard, ROWS, {}) == []
    assert set(shards_in(table).values()) <= {ROWS}


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_each_tag_has_its_rows(seed, server, tmp_path):
    draw, table = random.Random(seed), bucket_table(server.endpoint, server.place(tmp_path).uri, tmp_path)
    with flaky(server.endpoint, seed) as proxy:
        for _ in range(3):
            processes = [
                PROCESS(target=put_in_bucket, args=(proxy.endpoint, table.place.uri, tmp_path / f"{n}", writes(shard)))
                for n, shard in enumerate(SHARDS * 2)
            ]
            with running(processes):
                until(table.exists)  # processes that start on a busy machine take longer than the draw
                time.sleep(draw.uniform(3, 12))
                *killed, stopped = draw.sample(processes, 3)
                for process in killed:
                    process.kill()
                if stopped.is_alive():
                    os.kill(stopped.pid, signal.SIGSTOP)
                is_right(table)
                with suppress(LockHeld):  # some live; the stopped one is waited for until it counts as dead
                    clean(table)
                if stopped.is_alive():
                    os.kill(stopped.pid, signal.SIGCONT)
                for process in processes:
                    process.join()
                    assert process.exitcode in (0, -signal.SIGKILL, OVERTAKEN)
            is_right(table)
    for shard in SHARDS:
        for _, rows, lance_tag in writes(shard):
            put(table, shard, rows, lance_tag)
    is_right(table)
    assert len(lance_tags(table)) == len(SHARDS) * ROUNDS
    assert all(tag["metadata"] for tag in tags_of(table, table.open()).values())
    clean(table)
    files = {entry.name.rpartition("/")[2] for entry in table.place.names("posts.lance/data")}
    assert files == {file for file, _, _ in search(table, ["id"])}
    assert len(files) == len(SHARDS) * ROUNDS
