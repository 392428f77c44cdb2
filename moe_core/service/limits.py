"""What the service bears: bounds on bodies, images, waiting and time, so that no client takes its memory."""

import math
from dataclasses import dataclass

MIB = 1 << 20
QUEUE_BYTES = 256 * MIB  # of pixels that wait, where no number of images is given
MOST_IMAGES, MOST_QUEUED = 256, 16_384


@dataclass(frozen=True)
class Limits:
    """Bounds on what is kept for requests. What is beyond them is refused at once, with 413 or 429."""

    body_bytes: int = 64 * MIB  # of one request
    bodies_bytes: int = 256 * MIB  # of all requests that are read or decoded now
    images: int = MOST_IMAGES  # of one request
    queue: int | None = None  # images of all requests that are decoded, wait or are computed; None: by QUEUE_BYTES
    seconds: float = 30.0  # from a request's headers to its answer
    pause: float = 0.002  # seconds without another image after which those that wait are computed
    wait: float = 0.02  # seconds that an image waits for others at most

    def queued(self, image_size: int) -> int:
        """Images that may wait, of so many pixels a side."""
        return self.queue or max(MOST_IMAGES, min(MOST_QUEUED, QUEUE_BYTES // (image_size * image_size * 3)))


class TooMuch(Exception):
    """There is no room now. `retry_after`: seconds after which there should be."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = min(60, max(1, math.ceil(retry_after)))


class Room:
    """Counts what is held against a bound; for one thread."""

    def __init__(self, most: int, what: str) -> None:
        self.most, self.what, self.held = most, what, 0

    def take(self, count: int, seconds_each: float = 0.0) -> None:
        """Raises TooMuch where the bound would be passed."""
        if self.held + count > self.most:
            raise TooMuch(
                f"busy: {self.held:,} {self.what} are waiting, at most {self.most:,} may", self.held * seconds_each
            )
        self.held += count

    def give(self, count: int) -> None:
        self.held -= count
