"""Files for a cache, and processes that use one: `python -m helpers.cached ROOT LIMIT NAME...`."""

import hashlib
import subprocess
import sys
from pathlib import Path

from moe_core.store.cache import Cache

PART = 10  # bytes of one read
TESTS = Path(__file__).parents[1]


def content(name, size=100):
    return (name.encode() * size)[:size]


class Source:
    """Gives each name a file, and remembers what was read."""

    def __init__(self):
        self.reads = []

    def get(self, cache, name, size=100):
        data = content(name, size)

        def read(start):
            self.reads.append(name)
            return data[start : start + PART], len(data)

        return cache.fetch(name, hashlib.sha256(data).hexdigest(), read)


def using(root, limit, *names, fault=""):
    """A process that fetches these, says how often it read, and keeps them until its input ends."""
    command = [sys.executable, "-W", "error", "-m", "helpers.cached", str(root), str(limit), *names]
    environment = {"PYTHONPATH": f"{TESTS}:{TESTS.parent}", "HARDMOE_FAULT": fault}
    return subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def main():
    cache, source = Cache(Path(sys.argv[1]), int(sys.argv[2])), Source()
    paths = [source.get(cache, name) for name in sys.argv[3:]]
    print(len(source.reads), flush=True)
    sys.stdin.read()
    assert [path.read_bytes() for path in paths] == [content(name) for name in sys.argv[3:]]


if __name__ == "__main__":
    main()
