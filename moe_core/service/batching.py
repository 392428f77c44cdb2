"""Images of requests that come together, computed together: one thread takes all that wait and answers them by expert.

While it computes, the next ones gather, so the busier the service, the larger are its batches.

Letters: N images of a request, V hashtags, K hashtags of an answer, D embedding width.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from moe_core import threads
from moe_core.evaluation.metrics import best_hashtags
from moe_core.service.mixture import Mixture
from moe_core.serving.routed import WINDOW, WINDOW_BYTES, Predictions, routed
from moe_core.training.infer import BATCH
from moe_core.training.transfer import use

SMOOTH = 0.2  # weight of the newest batch in the time an image takes


@dataclass(frozen=True)
class Answers:
    """To the images of one request, in order."""

    experts: list[str]
    hashtags_NK: list[list[int]]  # ids, the most probable first
    p_NK: list[list[float]]
    embeddings_ND: np.ndarray | None  # float32, where they were wanted


@dataclass(eq=False)
class Job:
    """The images of one request, all of the bundle's size. `done` is called once, in the thread that computes."""

    mixture: Mixture
    images_NHWC: np.ndarray
    top: int
    embed: bool
    done: Callable[[Answers | Exception], None]
    dropped: bool = False  # nobody waits for it any more


class Batcher:
    """Answers jobs in a thread of its own, all that wait at a time; those of one bundle together.

    `pause` and `wait` are those of Limits. `observe(images, seconds)` is called after each batch.
    """

    def __init__(
        self, pause: float, wait: float, device: str = "cpu", observe: Callable[[int, float], object] = lambda *_: None
    ) -> None:
        self.seconds_each = 0.0  # that an image took lately
        self._pause, self._wait, self._device, self._observe = pause, wait, device, observe
        self._jobs: deque[Job] = deque()
        self._images = self._coming = 0
        self._last = 0.0  # when the last job came
        self._closed = False
        self._changed = threading.Condition()  # guards all of the above
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread once it has answered all that wait."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive() and not self._closed

    @property
    def waiting(self) -> int:
        """Images that wait."""
        return self._images

    def coming(self, requests: int) -> None:
        """So many more requests are being decoded (or fewer): a batch waits for them, for a while."""
        with self._changed:
            self._coming += requests
            if not self._coming:
                self._changed.notify()

    def submit(self, job: Job) -> None:
        with self._changed:
            self._jobs.append(job)
            self._images += len(job.images_NHWC)
            self._last = time.monotonic()
            self._changed.notify()

    def _run(self) -> None:
        use(self._device)
        while self._awaited():
            for jobs in self._taken():
                self._answer(jobs)
            jobs = []  # or a bundle would be kept until the next request

    def _awaited(self) -> bool:
        """Whether a job waits; waits for one. False once this is closed and all are answered."""
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            return bool(self._jobs)

    def _taken(self) -> list[list[Job]]:
        """All jobs that wait, at most one window of them, by mixture."""
        with self._changed:
            most = _window(self._jobs[0])
            began = time.monotonic()
            while self._images < most and not self._closed:
                now = time.monotonic()
                until = began + self._wait if self._coming else min(began + self._wait, self._last + self._pause)
                if now >= until:
                    break
                self._changed.wait(until - now)
            jobs: list[Job] = []
            images = 0
            while self._jobs and (not jobs or images + len(self._jobs[0].images_NHWC) <= most):
                job = self._jobs.popleft()
                self._images -= len(job.images_NHWC)
                images += len(job.images_NHWC)
                jobs.append(job)
        by_mixture: dict[int, list[Job]] = {}
        for job in jobs:
            if not job.dropped:
                by_mixture.setdefault(id(job.mixture), []).append(job)
        return list(by_mixture.values())

    def _answer(self, jobs: Sequence[Job]) -> None:
        """Where a batch fails each of its jobs is computed alone, so that no other fails with it."""
        try:
            began = time.perf_counter()
            answers = list(self._computed(jobs))
            images, seconds = sum(len(job.images_NHWC) for job in jobs), time.perf_counter() - began
            self.seconds_each += SMOOTH * (seconds / images - self.seconds_each)
            self._observe(images, seconds)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].done(error)
            else:
                for job in jobs:
                    self._answer([job])
            return
        for job, answer in zip(jobs, answers, strict=True):
            job.done(answer)

    def _computed(self, jobs: Sequence[Job]) -> Iterator[Answers]:
        mixture, top, embed = jobs[0].mixture, max(job.top for job in jobs), any(job.embed for job in jobs)
        images_NHWC = jobs[0].images_NHWC if len(jobs) == 1 else np.concatenate([job.images_NHWC for job in jobs])
        batches = [images_NHWC[first : first + BATCH] for first in range(0, len(images_NHWC), BATCH)]
        threads.use(mixture.work * len(batches[0]))
        experts: list[str] = []
        hashtags_NK: list[list[int]] = []
        p_NK: list[list[float]] = []
        parts: list[np.ndarray] = []
        for answer in routed(mixture.bundle, batches, window=len(batches), device=self._device, embed=embed):
            experts += answer.experts
            some_hashtags, some_p = _best(answer, top)
            hashtags_NK += some_hashtags
            p_NK += some_p
            if answer.embeddings_BD is not None:
                parts.append(answer.embeddings_BD.numpy())
        embeddings_ND = np.concatenate(parts) if parts else None
        first = 0
        for job in jobs:
            rows = slice(first, first + len(job.images_NHWC))
            yield Answers(
                experts[rows],
                [hashtags_K[: job.top] for hashtags_K in hashtags_NK[rows]],
                [p_K[: job.top] for p_K in p_NK[rows]],
                embeddings_ND[rows] if job.embed and embeddings_ND is not None else None,
            )
            first = rows.stop


def _best(answer: Predictions, top: int) -> tuple[list[list[int]], list[list[float]]]:
    """(ids of the hashtags, their probabilities) of each image of a batch, the most probable first."""
    if not top:
        nothing: list[list[int]] = [[] for _ in answer.experts]
        return nothing, [[] for _ in answer.experts]
    with torch.inference_mode():
        best_BK = best_hashtags(answer.probabilities_BV, top)
        p_BK = answer.probabilities_BV.gather(1, best_BK.to(answer.probabilities_BV.device)).cpu()
    return best_BK.tolist(), p_BK.tolist()


def _window(job: Job) -> int:
    """Images that are computed together: their pixels, or what the shared stages make of them, stay in memory."""
    pixels = job.mixture.bundle.image_size**2 * 3
    return max(BATCH, min(WINDOW * BATCH, WINDOW_BYTES // pixels))
