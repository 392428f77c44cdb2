"""Processes of a study."""

import time
from pathlib import Path


def mentions(environ, text):
    try:
        return text.encode() in environ.read_bytes()
    except OSError:
        return False


def until(true, process=None, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def runs(pid):
    """Whether there is such a process, of whatever parent; one that ended and waits to be collected does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
