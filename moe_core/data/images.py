"""Images: decoded once, at ingest, by an allow-list of formats and under limits. The home of Pillow.

A picture that cannot be used raises `Rejected` with a reason that is counted; nothing else escapes from here.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from moe_core.data.duplicates import signature

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 100_000_000  # of the file as it says itself, looked at before anything is decoded
RAW_UP_TO = 64  # side up to which pixels are stored raw: below it JPEG saves little and costs the loader much


class Rejected(Exception):
    """A post that is not used. `reason` is one of a few words that can be counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Picture:
    """A decoded image of `size` squared pixels and what its file was."""

    pixels: bytes  # RGB, row by row
    width: int  # of the file
    height: int
    format: str
    signature: bytes  # what near-duplicates are found by


def decode(data: bytes, size: int) -> Picture:
    """The middle square of an image, `size` pixels a side. Raises Rejected and nothing else."""
    if not data:
        raise Rejected("empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            kind = image.format or "?"
            if width * height > MAX_PIXELS:
                raise Rejected("too_large", f"{width}x{height}")
            if kind == "JPEG":
                image.draft("RGB", (size, size))  # decodes at a half, a quarter or an eighth where that is enough
            image.load()
            square = ImageOps.fit(_on_white(ImageOps.exif_transpose(image)), (size, size), Image.Resampling.BICUBIC)
            look = signature(np.asarray(square)[None]).tobytes()
            return Picture(square.tobytes(), width, height, kind, look)
    except Rejected:
        raise
    except UnidentifiedImageError:
        raise Rejected("not_an_image") from None
    except Exception as error:
        # Pillow raises OSError, SyntaxError, ValueError, struct.error ... for hostile files, depending on the format.
        reason = "truncated" if "truncated" in str(error).lower() else "broken"
        raise Rejected(reason, f"{type(error).__name__}: {error}"[:200]) from None


def encode(pixels: bytes, size: int) -> bytes:
    """What is stored: raw RGB for small images, JPEG of quality 90 for others."""
    if size <= RAW_UP_TO:
        return pixels
    file = io.BytesIO()
    Image.frombytes("RGB", (size, size), pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def pixels_of(stored: bytes, size: int) -> np.ndarray:
    """(size, size, 3) uint8 of what `encode` made."""
    if size <= RAW_UP_TO:
        return np.frombuffer(stored, np.uint8).reshape(size, size, 3)
    with Image.open(io.BytesIO(stored), formats=("JPEG",)) as image:
        return np.asarray(image.convert("RGB"))


def contact_sheet(images_NHWC: np.ndarray, columns: int, scale: int = 2) -> bytes:
    """PNG of N uint8 images of one size, `columns` a row."""
    count, height, width, _ = images_NHWC.shape
    rows = -(-count // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for number, image in enumerate(images_NHWC):
        row, column = divmod(number, columns)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = image
    file = io.BytesIO()
    picture = Image.fromarray(sheet)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, "white")
        page.alpha_composite(layer)
        return page.convert("RGB")
    return image.convert("RGB")
