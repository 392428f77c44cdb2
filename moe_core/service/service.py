"""A request with images, from its body to the answers of the mixture that is published then."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from starlette.requests import ClientDisconnect, Request

from moe_core import threads
from moe_core.errors import HardmoeError
from moe_core.service.batching import Answers, Batcher, Job
from moe_core.service.bodies import TOGETHER, BadBody, Images, declared_length, decoded, images_in, read_body
from moe_core.service.following import Following, Source
from moe_core.service.limits import Limits, Room
from moe_core.service.metrics import Metrics
from moe_core.service.mixture import Mixture
from moe_core.text import one_line

LEAST_BYTES = 4096  # that a request is counted with
INLINE = 1 << 16  # bytes of a form that are taken apart in the thread that reads requests

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class Late(Exception):
    """The time limit has passed."""


class Failed(Exception):
    """The mixture cannot answer."""


@dataclass(frozen=True)
class Pictures:
    """A request's images, in order: their names, why one could not be decoded or "", and the pixels of the others."""

    mixture: Mixture
    names: list[str | None]
    errors: list[str]
    pixels_NHWC: np.ndarray


@dataclass(frozen=True)
class Answered:
    """A request's images, in order: their names, why one could not be decoded or "", and answers to the others."""

    mixture: Mixture
    names: list[str | None]
    errors: list[str]
    answers: Answers | None  # None where no image could be decoded

    def rows(self) -> Iterator[tuple[str | None, str, int]]:
        """(name, error, place in the answers) of each image."""
        place = 0
        for name, error in zip(self.names, self.errors, strict=True):
            yield name, error, place
            place += not error


class Service:
    """All that the endpoints share. Made and used in one event loop, but for threads of its own.

    Raises what `source` raises where the mixture cannot be opened.
    """

    def __init__(self, source: Source, limits: Limits, device: str = "cpu", seconds: float = 1.0) -> None:
        self.limits, self.device, self.metrics = limits, device, Metrics()
        self.following = Following(source, seconds, self.metrics.publication)
        self.metrics.publication(self.following.now)
        self.batcher = Batcher(limits.pause, limits.wait, device, self.metrics.batch)
        self.bodies = Room(limits.bodies_bytes, "bytes of bodies")
        self.queue = Room(limits.queued(self.following.now.bundle.image_size), "images")
        self.metrics.watch(self.batcher, self.following, self.queue, device)
        self._decoding = ThreadPoolExecutor(threads.cores(), "decode")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Threads run inside; at its end what waits is answered."""
        self.batcher.start()
        self.following.start()
        try:
            yield
        finally:
            await asyncio.to_thread(self.batcher.close)
            await asyncio.to_thread(self.following.close)
            self._decoding.shutdown(wait=False, cancel_futures=True)

    async def answer(self, request: Request, top: int = 0, embed: bool = False) -> Answered:
        """Answers to the images in a request's body, by the mixture that is published when it begins.

        Raises BadBody, TooMuch, Late and Failed.
        """
        async with self.pictures(request) as pictures:
            answers = await self._computed(pictures, top, embed)
        return Answered(pictures.mixture, pictures.names, pictures.errors, answers)

    @asynccontextmanager
    async def pictures(self, request: Request) -> AsyncIterator[Pictures]:
        """The images in a request's body, decoded for the mixture that is published now; they have room and time.

        Raises BadBody, TooMuch and Late.
        """
        mixture, reserved = self.following.now, max(LEAST_BYTES, declared_length(request, self.limits))
        is_read = False
        with _held(self.bodies, reserved):
            try:
                async with asyncio.timeout(self.limits.seconds):
                    body = await read_body(request, self.limits)
                    is_read = True
                    images = await self._images(body, request.headers.get("content-type", ""), mixture)
                    del body
                    with _held(self.queue, len(images), self.batcher.seconds_each):
                        pixels_NHWC, errors = await self._pixels(images, mixture.bundle.image_size)
                        pictures = Pictures(mixture, images.names, errors, pixels_NHWC)
                        del images, pixels_NHWC
                        yield pictures
            except TimeoutError:
                if not is_read:
                    raise BadBody(408, f"the body did not come in {self.limits.seconds:g} s") from None
                raise Late(f"no answer in {self.limits.seconds:g} s (--time-limit): send fewer images") from None
            except ClientDisconnect:
                raise BadBody(400, "the body ends early") from None
        good = len(pictures.pixels_NHWC)
        self.metrics.images.labels("answered").inc(good)
        self.metrics.images.labels("not_decoded").inc(len(errors) - good)

    async def _images(self, body: bytes, content_type: str, mixture: Mixture) -> Images:
        take_apart = partial(images_in, body, content_type, mixture.bundle.image_size, self.limits)
        return take_apart() if len(body) < INLINE else await self._in_thread(take_apart)

    async def _pixels(self, images: Images, size: int) -> tuple[np.ndarray, list[str]]:
        """((N, S, S, 3) uint8 of those that can be decoded, each one's error or "")."""
        if images.pixels_NHWC is not None:
            return images.pixels_NHWC, [""] * len(images)
        self.batcher.coming(1)
        try:
            groups = [images.files[first : first + TOGETHER] for first in range(0, len(images), TOGETHER)]
            done = await asyncio.gather(*(self._in_thread(partial(decoded, group, size)) for group in groups))
        finally:
            self.batcher.coming(-1)
        found = [each for group in done for each in group]
        pixels = np.frombuffer(bytearray().join(data for data, _ in found), np.uint8)
        return pixels.reshape(-1, size, size, 3), [error for _, error in found]

    def _in_thread(self, work: Callable[[], Result]) -> Awaitable[Result]:
        return asyncio.get_running_loop().run_in_executor(self._decoding, work)

    async def _computed(self, pictures: Pictures, top: int, embed: bool) -> Answers | None:
        if not len(pictures.pixels_NHWC):
            return None
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Answers] = loop.create_future()

        def done(answers: Answers | Exception) -> None:
            loop.call_soon_threadsafe(_settle, answered, answers)

        mixture = pictures.mixture
        job = Job(mixture, pictures.pixels_NHWC, top, embed, done)
        self.batcher.submit(job)
        try:
            return await answered
        except HardmoeError as error:
            log.error("mixture %s: %s", mixture.version, error)
            raise Failed(f"the mixture cannot answer: {one_line(error, 500)}") from None
        finally:
            job.dropped = True


def _settle(future: "asyncio.Future[Answers]", answers: Answers | Exception) -> None:
    if future.done():  # nobody waits for it any more
        return
    if isinstance(answers, Exception):
        future.set_exception(answers)
    else:
        future.set_result(answers)


@contextmanager
def _held(room: Room, count: int, seconds_each: float = 0.0) -> Iterator[None]:
    room.take(count, seconds_each)
    try:
        yield
    finally:
        room.give(count)
