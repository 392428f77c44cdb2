"""Which mixture answers now: the published one, also after another was published or it was rolled back.

The new one is opened beside the old one and asked once before it takes over; requests under way end on the old one,
which leaves memory with the last of them.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moe_core.errors import HardmoeError
from moe_core.service.mixture import Mixture
from moe_core.serving.bundle import Bundle
from moe_core.serving.routed import predict
from moe_core.text import one_line

LONGEST_WAIT = 60.0  # seconds until a mixture that could not be opened is tried again

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where mixtures come from. All three raise HardmoeError or OSError.

    `stamp` is cheap and changes whenever `published` may; `published` is the version that is to answer.
    """

    stamp: Callable[[], str]
    published: Callable[[], str]
    open: Callable[[str], Bundle]


def fixed(version: str, bundle: Bundle) -> Source:
    """One bundle for ever."""
    return Source(lambda: "", lambda: version, lambda _: bundle)


class Following:
    """Holds the mixture that answers, and follows its source in a thread, which looks every `seconds`.

    Raises what the source raises where the first one cannot be opened.
    """

    def __init__(
        self, source: Source, seconds: float = 1.0, changed: Callable[[Mixture | None], object] = lambda _: None
    ) -> None:
        self._source, self._seconds = source, seconds
        self.changed = changed  # called with a mixture that took over, None where it could not
        self._stamp: str | None = source.stamp()
        self.now = self._opened(source.published())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publication", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _opened(self, version: str) -> Mixture:
        """A mixture that has answered once."""
        bundle = self._source.open(version)
        predict(bundle, np.zeros((1, bundle.image_size, bundle.image_size, 3), np.uint8))
        return Mixture(version, bundle)

    def look(self) -> bool:
        """Opens the published mixture if it is another one; False where that failed. Nothing is raised."""
        try:
            stamp = self._source.stamp()
            if stamp == self._stamp:
                return True
            version = self._source.published()
            if version != self.now.version:
                mixture = self._opened(version)
                log.info("mixture %s answers in place of %s", version, self.now.version)
                self.now = mixture
                self.changed(mixture)
            self._stamp = stamp
            return True
        except (HardmoeError, OSError) as error:
            log.warning("mixture %s still answers: %s", self.now.version, one_line(error, 500))
        except Exception:
            log.exception("mixture %s still answers", self.now.version)
        self.changed(None)
        return False

    def _run(self) -> None:
        wait = self._seconds
        while not self._ended.wait(wait):
            wait = self._seconds if self.look() else min(2 * wait, LONGEST_WAIT)
