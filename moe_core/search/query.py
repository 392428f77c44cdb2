"""What is asked for as one vector: images, stored posts and hashtags, with hashtags that are not wanted.

Every part is a vector of unit length: an image's embedding by its own expert, as stored posts are embedded; the stored
embedding of a post; the shared decoder's row of a hashtag. The query is the mean of the wanted parts minus the mean of
the unwanted ones, again of unit length, so that an image, a post and a hashtag weigh alike whatever their norms. The
score of a post is the inner product of the query with its embedding at unit length: a cosine, 1 at most.

Letters: N images, D embedding width.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from moe_core.data.images import REASONS, Rejected, decode
from moe_core.data.tags import Accents, canonical
from moe_core.errors import BadImage, BadSetting, Unknown
from moe_core.search.lists import unit
from moe_core.serving.bundle import Bundle
from moe_core.serving.files import decoded, file_of
from moe_core.serving.routed import routed
from moe_core.text import shown

Picture = np.ndarray | bytes | Path  # (H, W, 3) uint8, an image file's bytes, or its path
OFFERED = 5  # spellings that are near to an unknown hashtag


def pixels_of(pictures: Sequence[Picture], size: int) -> np.ndarray:
    """(N, size, size, 3) uint8, prepared as posts are at ingest and under its limits. Raises BadImage."""
    images = [_pixels(picture, size, number) for number, picture in enumerate(pictures, 1)]
    return np.stack(images) if images else np.empty((0, size, size, 3), np.uint8)


def _pixels(picture: Picture, size: int, number: int) -> np.ndarray:
    if isinstance(picture, Path):
        ((((path, error),), images_BHWC),) = decoded([picture], size, threads=1)
        if error:
            raise BadImage(f"{shown(path, 300)}: {error}")
        return np.asarray(images_BHWC[0])
    if isinstance(picture, np.ndarray):
        if picture.dtype == np.uint8 and picture.shape == (size, size, 3):
            return picture
        picture = file_of(picture, number)
    try:
        pixels = decode(picture, size).pixels
    except Rejected as why:
        raise BadImage(f"image {number}: {why}: {REASONS[why.reason]}") from None
    return np.frombuffer(pixels, np.uint8).reshape(size, size, 3)


def embedded(bundle: Bundle, images_NHWC: np.ndarray, device: str = "cpu") -> tuple[np.ndarray, list[str]]:
    """((N, D) float32, expert of each image) of uint8 images of the bundle's size.

    As `embeddings` has stored posts: by the nearest expert, also where the publish gate has the trunk answer in its
    place. Distances between what two networks make of pictures would say nothing.
    """
    (answer,) = routed(bundle, [images_NHWC], device=device, embed=True)
    assert answer.embeddings_BD is not None
    return answer.embeddings_BD.numpy(), answer.experts


class Hashtags:
    """Finds hashtags of a bundle by what a user writes."""

    def __init__(self, hashtags: Sequence[str], synonyms: Mapping[str, str], accents: Accents) -> None:
        self.hashtags, self._accents = hashtags, accents
        self._numbers = {tag: number for number, tag in enumerate(hashtags)}
        self.synonyms = synonyms

    def number(self, written: str) -> int:
        """The hashtag's place in the bundle. Raises Unknown, which offers near spellings."""
        tag = self._meant(written)
        if tag is None or tag not in self._numbers:
            near = difflib.get_close_matches(tag or written, [*self._numbers, *self.synonyms], OFFERED, cutoff=0.5)
            offer = f": did you mean {', '.join(near)}?" if near else ""
            raise Unknown(
                f"no hashtag {shown(written)!r} among the {len(self.hashtags):,} of this mixture{offer}", near
            )
        return self._numbers[tag]

    def spellings(self, written: str) -> list[str]:
        """All canonical spellings that mean the same, of the vocabulary or not."""
        meant = self._meant(written)
        if meant is None:
            raise BadSetting(f"{shown(written)!r} is no hashtag: nothing is left of it in canonical spelling")
        return [meant, *(tag for tag, its in self.synonyms.items() if its == meant and tag != meant)]

    def _meant(self, written: str) -> str | None:
        tag = pl.DataFrame({"tag": [written]}).select(canonical(pl.col("tag"), self._accents)).item()
        return self.synonyms.get(tag, tag)


def tag_vectors(bundle: Bundle, numbers: Sequence[int]) -> np.ndarray:
    """(N, D) of unit length: the decoder's rows of some hashtags."""
    return unit(bundle.decoder.weight.detach().float().numpy()[list(numbers)])


def combined(wanted_ND: np.ndarray, unwanted_MD: np.ndarray) -> np.ndarray:
    """(D,): the query of these parts of unit length, itself of unit length. Raises BadSetting where nothing is left."""
    if not len(wanted_ND):
        raise BadSetting(
            "nothing to search for: wanted an image, a post or a hashtag; unwanted hashtags alone are none"
        )
    query_D = wanted_ND.mean(0) - (unwanted_MD.mean(0) if len(unwanted_MD) else 0)
    if np.linalg.norm(query_D) < 1e-6:
        raise BadSetting("the parts of the query cancel out: ask for fewer")
    return unit(query_D)
