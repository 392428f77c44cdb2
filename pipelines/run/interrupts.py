"""Ctrl-C and SIGTERM while something must not be left half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """A signal takes effect at the end: what was begun is noted by then."""
    received: list[int] = []
    with handled(lambda number, _: received.append(number)):
        yield
    if received:
        signal.raise_signal(received[0])


@contextmanager
def handled(handler: Any, even_ignored: bool = True) -> Iterator[None]:
    """Both signals go to the handler; outside the main thread nothing changes.

    `even_ignored`: also SIGINT where a script started us in the background, for which a shell ignores it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in SIGNALS if even_ignored or signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, its in before.items():
            signal.signal(number, its)
