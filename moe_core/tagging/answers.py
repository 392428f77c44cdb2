"""Answers to a stream of records: which hashtags of an image are given, a batch of images at a time.

Letters: B records of a batch, M images of them that were answered, V hashtags, S hashtags given of an image.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from moe_core.errors import BadSetting
from moe_core.evaluation.calibration import scaled
from moe_core.evaluation.metrics import best_hashtags
from moe_core.serving.bundle import Bundle
from moe_core.serving.files import decoded_items
from moe_core.serving.routed import WINDOW_BYTES, routed
from moe_core.tagging.inputs import Record, image_of, without_images

REBUILD = "it was built before they were stored, or without validation posts; `hardmoe run` builds it again"


@dataclass(frozen=True)
class Wanted:
    """Which hashtags of an image are given: the first `top` of those that pass the other limits."""

    top: int = 5
    min_p: float = 0.0  # of p as it is given
    precision: float | None = None  # each hashtag must reach its threshold for it
    calibrated: bool = False  # p is scaled by the bundle's calibration temperature

    def check(self, bundle: Bundle, topk: int) -> None:
        """Raises BadSetting for what the bundle, or its answer with the `topk` nearest experts, has not."""
        for option, given, has in (
            ("--precision", self.precision is not None, bundle.curves is not None),
            ("--calibrated", self.calibrated, bundle.calibration_temperature is not None),
        ):
            if given and topk != 1:
                raise BadSetting(f"{option} goes with the published answer, not with --topk {topk}: leave one out")
            if given and not has:
                what = "thresholds" if option == "--precision" else "calibration temperature"
                instead = "; --min-p asks for a lowest p" if option == "--precision" else ""
                raise BadSetting(f"{option}: mixture {bundle.folder.name} has no {what}: {REBUILD}{instead}")

    def limits(self, bundle: Bundle) -> np.ndarray | None:
        """(V,) float32: the lowest probability of each hashtag; None without a precision."""
        return None if self.precision is None or bundle.curves is None else bundle.curves.thresholds(self.precision)

    def of(
        self, bundle: Bundle, probabilities_MV: Tensor, limit_V: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """((M, S) int64 hashtags, best first; (M, S) float32 their p; (M, S) bool: whether it is given)."""
        best_MS = best_hashtags(probabilities_MV, self.top)
        there_MS = best_MS.to(probabilities_MV.device)
        p_MS = given_MS = probabilities_MV.gather(1, there_MS).cpu().numpy()
        if self.calibrated and bundle.calibration_temperature is not None:
            given_MS = scaled(probabilities_MV, bundle.calibration_temperature).gather(1, there_MS).cpu().numpy()
        keep_MS = given_MS >= self.min_p
        if limit_V is not None:
            keep_MS &= p_MS >= limit_V[best_MS.numpy()]
        return best_MS.numpy(), given_MS, keep_MS


@dataclass(frozen=True)
class Rows:
    """Some records and what became of each: an error, "" for an answer; of the answered ones, in order, the rest."""

    records: list[Record]
    errors: list[str]
    experts: list[str]  # (M,)
    tag_MS: np.ndarray
    p_MS: np.ndarray
    keep_MS: np.ndarray

    @property
    def answered(self) -> int:
        return len(self.experts)

    @property
    def skipped(self) -> int:
        return sum(bool(record.skipped) for record in self.records)

    @property
    def failed(self) -> int:
        return len(self.records) - self.answered - self.skipped


@dataclass(frozen=True)
class Asked:
    """A mixture, and how it is asked."""

    bundle: Bundle
    wanted: Wanted = Wanted()
    topk: int = 1
    temperature: float | None = None
    window_bytes: int = WINDOW_BYTES
    threads: int = 1
    device: str = "cpu"

    @property
    def answer(self) -> str:
        return self.bundle.answer if self.topk == 1 else "mixture_topk"

    def with_threads(self, threads: int) -> "Asked":
        """The same, with so many threads to decode."""
        return replace(self, threads=threads)

    def rows(self, records: Iterable[Record]) -> Iterator[Rows]:
        """Answers in the order of the records, a batch of them at a time."""
        waiting = deque[tuple[list[Record], list[str]]]()  # read, not yet answered
        bundle, limits = self.bundle, self.wanted.limits(self.bundle)

        def batches() -> Iterator[np.ndarray]:
            for batch, errors, images_BHWC in decoded_items(records, image_of, bundle.image_size, self.threads):
                waiting.append((without_images(batch), errors))
                yield images_BHWC

        how = {"window_bytes": self.window_bytes, "topk": self.topk, "temperature": self.temperature}
        for answer in routed(bundle, batches(), **how, device=self.device):  # type: ignore[arg-type]
            batch, errors = waiting.popleft()
            yield Rows(batch, errors, answer.experts, *self.wanted.of(bundle, answer.probabilities_BV, limits))

    def documents(self, rows: Rows) -> Iterator[dict[str, Any]]:
        """Each record as `--json` has it."""
        answers = iter(range(rows.answered))
        for record, error in zip(rows.records, rows.errors, strict=True):
            of_table = {"table": record.table} if record.table else {}
            about = {"image": record.name} | of_table
            if record.skipped:
                yield about | {"skipped": record.skipped}
            elif error:
                yield about | {"error": error}
            else:
                place = next(answers)
                expert = rows.experts[place]
                chosen = zip(rows.tag_MS[place], rows.p_MS[place], rows.keep_MS[place], strict=True)
                yield about | {
                    "expert": expert,
                    "expert_published": self.bundle.published[expert],
                    "answer": self.answer,
                    "tags": [
                        {"tag": self.bundle.hashtags[tag], "p": round(float(p), 5)} for tag, p, keep in chosen if keep
                    ],
                }
