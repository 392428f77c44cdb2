"""Posts to train on: images, wherever they lie, and their tags.

Letters: N posts, B posts in the batch, C channels, H W pixels, T tags of all posts, M tags of the post that has most,
V hashtags.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from moe_core.training.moves import Moves

READ_ROWS = 1024  # that are copied to a device at once
COUNTED = 1 << 20  # posts whose tags are counted at once
NO_TAG = -1


class Images(Protocol):
    """N uint8 images of one size, in memory or in a store."""

    def __len__(self) -> int: ...

    def read(self, rows_B: np.ndarray, moves: Moves | None = None) -> np.ndarray:
        """(B, H, W, C) uint8: the images at these places, in this order, as they are or moved."""
        ...

    def subset(self, rows_N: np.ndarray) -> Images:
        """The images at these places, not yet read."""
        ...

    def fetched(self, rows_N: np.ndarray) -> Images:
        """The images at these places, in memory, as they are stored."""
        ...


@dataclass(frozen=True)
class ImagesInMemory:
    """Images in memory."""

    images_NHWC: np.ndarray

    def __len__(self) -> int:
        return len(self.images_NHWC)

    def read(self, rows_B: np.ndarray, moves: Moves | None = None) -> np.ndarray:
        images_BHWC = self.images_NHWC[rows_B]
        return moves.of(images_BHWC) if moves else images_BHWC

    def subset(self, rows_N: np.ndarray) -> ImagesInMemory:
        return ImagesInMemory(self.images_NHWC[rows_N])

    fetched = subset


@dataclass(frozen=True)
class ImagesOnDevice:
    """Images as one byte tensor on a device: a batch is an index, and is augmented there."""

    images_NHWC: Tensor

    def __len__(self) -> int:
        return len(self.images_NHWC)

    @property
    def nbytes(self) -> int:
        return self.images_NHWC.nbytes

    def read(self, rows_B: np.ndarray, moves: Moves | None = None) -> np.ndarray:
        images_BHWC = self.images_NHWC[torch.from_numpy(rows_B).to(self.images_NHWC.device)].cpu().numpy()
        return moves.of(images_BHWC) if moves else images_BHWC

    def subset(self, rows_N: np.ndarray) -> ImagesOnDevice:
        return ImagesOnDevice(self.images_NHWC[torch.from_numpy(rows_N).to(self.images_NHWC.device)])

    fetched = subset


def bytes_for_posts(mib: int | Literal["auto"], device: str) -> int:
    """Bytes of images that may stay on a device, by `device_mib`: "auto" is half of what is free there."""
    if not device.startswith("cuda"):
        return 0
    return torch.cuda.mem_get_info(device)[0] // 2 if mib == "auto" else mib << 20


@dataclass(frozen=True)
class Posts:
    """Images, and their tags as positions in the vocabulary, in compressed rows."""

    images: Images
    tags_T: Tensor  # int64 in [0, V)
    starts_N1: Tensor  # int64, post n has tags_T[starts_N1[n]:starts_N1[n + 1]]
    block: int = 1  # adjacent posts that a training reads together

    def __post_init__(self) -> None:
        if len(self.starts_N1) != len(self.images) + 1 or int(self.starts_N1[-1]) != len(self.tags_T):
            raise ValueError(
                f"{len(self.images)} images, {len(self.starts_N1)} row starts up to {int(self.starts_N1[-1])}, "
                f"{len(self.tags_T)} tags: wanted one start more than images, the last one at the number of tags"
            )

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def most_tags(self) -> int:
        """Tags of the post that has most: M."""
        parts = (self.starts_N1[first : first + COUNTED + 1] for first in range(0, len(self), COUNTED))
        return max((int(part.diff().max()) for part in parts), default=0)

    def tags_of(self, rows_B: np.ndarray) -> np.ndarray:
        """(B, M) int64: the tags of each post, filled up with NO_TAG to as many as any post has."""
        owner, place, tags = self._places_of(rows_B)
        tags_BM = np.full((len(rows_B), self.most_tags), NO_TAG)
        tags_BM[owner, place] = tags
        return tags_BM

    def subset(self, rows_N: np.ndarray) -> Posts:
        """The posts at these places, in this order; images are not read."""
        return Posts(self.images.subset(rows_N), *self.tag_rows(rows_N), self.block)

    def tag_rows(self, rows_B: np.ndarray) -> tuple[Tensor, Tensor]:
        """(tags_T, starts_B1) of the posts at these places, in this order."""
        owner, _, tags = self._places_of(rows_B)
        counts_B = np.bincount(owner, minlength=len(rows_B))
        starts_B1 = np.concatenate([[0], counts_B.cumsum()]).astype(np.int64)
        return torch.from_numpy(tags.copy()), torch.from_numpy(starts_B1)

    def in_memory(self) -> Posts:
        """These posts with all images read."""
        return replace(self, images=ImagesInMemory(self.images.read(np.arange(len(self)))))

    def on_device(self, most_bytes: int, device: str) -> Posts:
        """These posts with all images on the device if they fit into `most_bytes`, else unchanged.

        Unchanged, too, where another process takes the memory meanwhile.
        """
        if isinstance(self.images, ImagesOnDevice) or not most_bytes:
            return self
        pixels = self.images.read(np.zeros(1, np.int64))
        if pixels.nbytes * len(self) > most_bytes:
            return self
        try:
            images_NHWC = torch.empty((len(self), *pixels.shape[1:]), dtype=torch.uint8, device=device)
            for first in range(0, len(self), READ_ROWS):
                rows = np.arange(first, min(first + READ_ROWS, len(self)))
                images_NHWC[first : first + len(rows)].copy_(torch.from_numpy(self.images.read(rows)))
        except torch.OutOfMemoryError:
            return self
        return replace(self, images=ImagesOnDevice(images_NHWC))

    def _places_of(self, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(place in `rows_B`, place among the post's tags, tag) of every tag of these posts. In numpy: torch would
        start threads of its own here."""
        starts_N1, tags_T = self.starts_N1.numpy(), self.tags_T.numpy()
        first_B, counts_B = starts_N1[rows_B], starts_N1[rows_B + 1] - starts_N1[rows_B]
        owner = np.repeat(np.arange(len(rows_B)), counts_B)
        offset = np.arange(len(owner)) - np.repeat(counts_B.cumsum() - counts_B, counts_B)
        return owner, offset, tags_T[first_B[owner] + offset]
