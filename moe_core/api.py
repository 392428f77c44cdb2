"""What a notebook asks of a mixture: `import moe_core as hm`, then `hm.open("cats")`.

predict and embed need a bundle alone, and nothing but torch, numpy, Pillow and safetensors; search and posts need the
study that it was made in, and what its pipeline needs.

Letters: N images, D embedding width.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from moe_core import threads
from moe_core.errors import BadImage, BadSetting, Unknown
from moe_core.models.cost import multiply_adds
from moe_core.serving.bundle import Bundle
from moe_core.serving.files import BATCH, decoded_items, entries_of, file_of, no_images
from moe_core.serving.folders import bundle_folder, study_at
from moe_core.serving.routed import routed
from moe_core.store.artifact import Artifact
from moe_core.tagging.answers import Asked, Wanted
from moe_core.tagging.inputs import Record, image_of
from moe_core.text import shown

if TYPE_CHECKING:
    import polars as pl

    from moe_core.search.filters import Filters
    from moe_core.search.searcher import Hit, Searcher

Picture = str | os.PathLike[str] | bytes | np.ndarray | Image.Image
"""An image file or a folder of them, the bytes of an image file, (H, W, 3) uint8, or Pillow's."""

PICTURES = (str, os.PathLike, bytes, np.ndarray, Image.Image)


@dataclass(frozen=True)
class Prediction:
    """The answer to one image, or why there is none."""

    image: str  # its path, or its number among those that were given
    tags: dict[str, float]  # hashtag -> probability, the most probable first
    expert: str | None  # the nearest one; where it is not published, the trunk answered
    error: str | None = None


class Mixture:
    """A mixture that answers. Threads may share it."""

    def __init__(self, path: Path, version: str | None, memory_mib: int | None, device: str | None) -> None:
        self._study = study_at(path)
        if self._study is None and version is not None:
            raise BadSetting(f"a version goes with a study: {path} is none, it has no study.toml")
        place: Path | Artifact = bundle_folder(path) if self._study is None else _bundle_of(self._study, version)
        self.bundle = Bundle(place, expert_bytes=memory_mib << 20 if memory_mib else None)
        self.version = place.version if isinstance(place, Artifact) else place.name
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._memory_bytes = memory_mib << 20 if memory_mib else None
        self._searcher: Searcher | None = None

    @property
    def hashtags(self) -> list[str]:
        return list(self.bundle.hashtags)

    @property
    def experts(self) -> list[str]:
        """Keys, in the order of their numbers."""
        return list(self.bundle.published)

    def predict(
        self,
        images: Picture | Iterable[Picture],
        top: int = 5,
        min_p: float = 0.0,
        precision: float | None = None,
        calibrated: bool = False,
    ) -> list[Prediction]:
        """The `top` hashtags of each image, as `hardmoe predict` has them; of a folder, of all image files in it.

        `min_p` and `precision` leave out hashtags below that probability, or below the threshold at which they had that
        precision on validation posts. `calibrated`: p scaled to how often it is right. An image that cannot be read has
        its error in place of an answer. Raises BadSetting for what the mixture has not.
        """
        wanted = Wanted(top, min_p, precision, calibrated)
        wanted.check(self.bundle, topk=1)
        self._set_threads()
        asked = Asked(self.bundle, wanted, threads=threads.share(), device=self.device)
        return [
            Prediction(
                each["image"],
                {tag["tag"]: tag["p"] for tag in each.get("tags", ())},
                each.get("expert"),
                each.get("error"),
            )
            for rows in asked.rows(_records(images))
            for each in asked.documents(rows)
        ]

    def embed(self, images: Picture | Iterable[Picture]) -> np.ndarray:
        """(N, D) float32: each image in the one embedding space of all experts, by its own expert, as stored posts are.

        Raises BadImage for one that cannot be read.
        """
        self._set_threads()

        def batches() -> Iterator[np.ndarray]:
            records, size = _records(images), self.bundle.image_size
            for some, errors, images_BHWC in decoded_items(records, image_of, size, threads.share()):
                for record, error in zip(some, errors, strict=True):
                    if error:
                        raise BadImage(f"{shown(record.name, 300)}: {error}")
                yield images_BHWC

        parts = [np.empty((0, self.bundle.router.width), np.float32)]
        for answer in routed(self.bundle, batches(), device=self.device, embed=True):
            assert answer.embeddings_BD is not None
            parts.append(answer.embeddings_BD.numpy())
        return np.concatenate(parts)

    def search(
        self,
        image: Picture | Sequence[Picture] = (),
        tag: str | Sequence[str] = (),
        post: str | Sequence[str] = (),
        without: str | Sequence[str] = (),
        top: int = 20,
        filters: Filters | None = None,
    ) -> list[Hit]:
        """The `top` posts nearest to an image, a hashtag, a stored post, or all of these together, the best first.

        `without`: hashtags that are not wanted. `filters`: moe_core.search.filters.Filters. Raises BadImage, Unknown
        for a hashtag or post that is not there, and BadSetting for a mixture that was opened without its study.
        """
        pictures = [image_of(record) for record in _records(image)]
        more = {} if filters is None else {"filters": filters}
        return self._posts_of("search").find(
            pictures, _several(post), _several(tag), _several(without), top=top, **more
        )

    def posts(self, expert: str | None = None, split: str | None = None, tag: str | None = None) -> pl.DataFrame:
        """Posts that the mixture embedded, a row each: shard, position, id, expert, split, user, taken_at, tags,
        original. Raises BadSetting for an expert or split that is none."""
        filters = resolve_name("moe_core.search.filters:Filters")(split=split, expert=expert, tag=tag)
        frame: pl.DataFrame = self._posts_of("posts").posts(filters)
        return frame

    def picture(self, post: str) -> Image.Image:
        """The stored picture of a post. Raises Unknown where there is none any more."""
        data = self._posts_of("picture").picture(post)
        if data is None:
            raise Unknown(f"no picture of post {shown(post)!r} in mixture {self.version}")
        return Image.open(io.BytesIO(data))

    def _posts_of(self, what: str) -> Searcher:
        """What the study has of the posts, opened when it is first wanted."""
        if self._study is None:
            raise BadSetting(
                f"{what} needs the posts of a study, and {self.bundle.folder} is a bundle alone: open the study's "
                "folder"
            )
        if self._searcher is None:
            study = resolve_name("moe_core.study_file:load_study")(self._study)
            context = resolve_name("moe_core.workspace:open_study")(study, self._study.parent)
            more = {} if self._memory_bytes is None else {"memory_bytes": self._memory_bytes}
            found: Searcher = resolve_name("moe_core.search.searcher:Searcher")(
                context, self.version, bundle=self.bundle, device=self.device, **more
            )
            self._searcher = found
        return self._searcher

    def _set_threads(self) -> None:
        work = multiply_adds(self.bundle.router, self.bundle.image_size) * BATCH
        threads.use(work, threads.whole_number("HARDMOE_THREADS"))


def opened(path: str | os.PathLike[str], version: str | None, memory_mib: int | None, device: str | None) -> Mixture:
    """See moe_core.open."""
    if memory_mib is not None and memory_mib < 1:
        raise BadSetting(f"memory_mib {memory_mib}: wanted at least 1")
    return Mixture(Path(path), version, memory_mib, device)


def _bundle_of(study: Path, version: str | None) -> Path | Artifact:
    place: Path | Artifact = resolve_name("moe_core.serving.publication:bundle_at")(study, version)
    return place


def _several(one_or_more: str | Sequence[str]) -> Sequence[str]:
    return [one_or_more] if isinstance(one_or_more, str) else one_or_more


def _records(images: Picture | Iterable[Picture]) -> Iterator[Record]:
    """The images, those of folders each. Raises BadSource for a folder without any."""
    several: Iterable[Picture] = [images] if isinstance(images, PICTURES) else images
    row = 0
    for number, picture in enumerate(several, 1):
        if isinstance(picture, str | os.PathLike):
            before = row
            for path, skipped in entries_of(Path(picture)):
                if not skipped:
                    row += 1
                    yield Record(path, "", 0, row, "", None, "")
            if row == before:
                raise no_images(Path(picture))
        else:
            row += 1
            yield Record(f"image {number}", "given", 0, row, "", _bytes_of(picture, number), "")


def _bytes_of(picture: bytes | np.ndarray | Image.Image, number: int) -> bytes:
    """An image file with the picture. Raises BadImage for an array that is none."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, np.ndarray):
        return file_of(picture, number)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
