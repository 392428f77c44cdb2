"""Processes of a study."""

import time


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
