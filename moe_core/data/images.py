"""Images: decoded once, at ingest, by an allow-list of formats and under limits. The home of Pillow.

A picture that cannot be used raises `Rejected` with one of `REASONS`; nothing else escapes from here for a bad file.
What is stored is pixels and nothing but pixels: EXIF (with its places and names), XMP, comments and color profiles go.
"""

import io
import threading
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from moe_core.data.headers import TooManyParts, slim
from moe_core.errors import CorruptArtifact

try:
    import simplejpeg
except ModuleNotFoundError:  # not among what only answers: Pillow gives the same pixels, copied twice more
    simplejpeg = None

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP")
REASONS = {
    "empty": "no bytes: an empty or missing file, or a null",
    "not_an_image": "not of an allowed format (JPEG, PNG, WebP, AVIF, GIF, BMP), whatever its name says",
    "broken": "begins like an allowed format, but cannot be decoded",
    "truncated": "ends before its last row",
    "too_large": "more pixels, or more work to decode, than any photograph",
    "too_small": "shorter side below data.min_side",
    "too_narrow": "one side more than 20 times the other: the middle square would show nothing of it",
    "uniform": "one color all over the square that is kept (data.reject_uniform)",
}
# Limits on what a file's header declares, checked before anything is decoded. A decoded pixel takes 4 bytes; with its
# copies and a progressive JPEG's coefficients up to 12, or 20 for WebP: so each file stays below 1 GB.
MAX_PIXELS = {"JPEG": 64_000_000, "PNG": 64_000_000, "GIF": 64_000_000, "BMP": 64_000_000}
MAX_PIXELS |= {"WEBP": 32_000_000, "AVIF": 32_000_000}
MAX_SCANS = 20  # of a progressive JPEG of MAX_PIXELS, and in proportion more of a smaller one; encoders write ten or so
MAX_RLE = 8 << 20  # bytes of a BMP that is run-length encoded, which Pillow decodes in Python, 4 MB a second
MAX_ASPECT = 20
LARGE = 8_000_000  # decoded pixels from which files are decoded one at a time, whatever the number of threads
RAW_UP_TO = 64  # `store = "auto"`: side up to which pixels are stored raw (measured: docs/explanation/performance.md)
QUALITY = 90  # of stored JPEG and WebP

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ALLOWED = (b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM")
_OTHERS = {
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"%PDF": "PDF",
    b"\0\0\1\0": "ICO",
    b"PK\3\4": "ZIP",
    b"\x1f\x8b": "gzip",
    b"8BPS": "Photoshop",
    b"\x1aE\xdf\xa3": "Matroska video",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
}
HEIC = ("heic", "heix", "heim", "heis", "hevc", "hevx", "hevm", "hevs", "mif1", "msf1")
_large = threading.Lock()
# Of pictures of strangers, Pillow warns of much that is no concern of ours. The filter is the process's: one a call
# would be undone by other threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Rejected(Exception):
    """An image that is not used. `reason` is a key of REASONS."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Picture:
    """A decoded image of `size` squared pixels and what its file was."""

    pixels: bytes  # RGB, row by row
    width: int  # of the file, before it is turned
    height: int
    format: str


def decode(data: bytes, size: int, min_side: int = 1, reject_uniform: bool = False) -> Picture:
    """The middle square of an image, `size` pixels a side, the right way up, on white. Raises Rejected for a bad file.

    Of an animation, the first frame. Colors are taken as sRGB, whatever profile the file carries.
    """
    if not data:
        raise Rejected("empty")
    image, kind = _open(data, min_side)
    width, height = image.size
    if kind == "JPEG" and min(width, height) >= 2 * size:
        image.draft("RGB", (size, size))  # decodes at a half, a quarter or an eighth, which is enough
    with _large if image.width * image.height >= LARGE else nullcontext():
        square = _square(_load(image), size)
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        square = square.transpose(turn)
    pixels = square.tobytes()
    if reject_uniform and pixels == pixels[:3] * (size * size):
        raise Rejected("uniform", f"#{pixels[:3].hex()}")
    return Picture(pixels, width, height, kind)


def stored_as(size: int, store: str) -> str:
    """How pictures are stored: raw, jpeg, png or webp; `store` is data.store."""
    return ("raw" if size <= RAW_UP_TO else "jpeg") if store == "auto" else store


def encode(pixels: bytes, size: int, store: str = "auto") -> bytes:
    """What is stored of `size` squared RGB pixels; `store` is data.store.

    What is 3 * size * size bytes long is raw pixels, anything else a file: a reader tells them apart by that.
    """
    kind = stored_as(size, store)
    if kind == "raw":
        return pixels
    file = io.BytesIO()
    image = Image.frombytes("RGB", (size, size), pixels)
    if kind == "png":
        image.save(file, "PNG", compress_level=3)
    else:
        image.save(file, kind.upper(), quality=QUALITY)
    stored = file.getvalue()
    return stored if len(stored) != len(pixels) else stored + b"\0"  # decoders stop at the end of the picture


def read_pixels(stored: bytes | memoryview, place_HWC: np.ndarray, colors: Literal["RGB", "BGR"] = "RGB") -> None:
    """Puts what `encode` made into a square uint8 array. Raises CorruptArtifact for anything else.

    JPEGs are decoded there by simplejpeg, to the same pixels as Pillow's, which would copy them twice more.
    """
    size, data = len(place_HWC), memoryview(stored).cast("B")
    order = slice(None) if colors == "RGB" else slice(None, None, -1)
    if len(data) == place_HWC.nbytes:
        place_HWC[..., order] = np.frombuffer(data, np.uint8).reshape(place_HWC.shape)
        return
    try:
        if simplejpeg and data[:2] == b"\xff\xd8":
            height, width, _ = simplejpeg.decode_jpeg(data, colors, buffer=place_HWC).shape
            _check_size((width, height), size)
            return
        with Image.open(io.BytesIO(data), formats=("PNG", "WEBP", "JPEG")) as image:
            _check_size(image.size, size)
            place_HWC[..., order] = np.asarray(image.convert("RGB"))
    except (OSError, ValueError) as error:
        raise CorruptArtifact(
            f"a stored picture of {len(data)} bytes is neither raw {size}x{size} pixels nor a file ({error}): "
            "ingest again"
        ) from None


def _check_size(found: tuple[int, int], size: int) -> None:
    if found != (size, size):
        raise CorruptArtifact(f"a stored picture is {found[0]}x{found[1]}, wanted {size}x{size}: ingest again")


def resized(images_NHWC: np.ndarray, size: int) -> np.ndarray:
    """(N, size, size, 3) uint8 of square images; those of that size as they are."""
    if images_NHWC.shape[1] == size:
        return images_NHWC
    square = (size, size)
    small = [np.asarray(Image.fromarray(image).resize(square, Image.Resampling.BICUBIC)) for image in images_NHWC]
    return np.stack(small) if small else np.empty((0, *square, 3), np.uint8)


def contact_sheet(images_NHWC: np.ndarray, columns: int, side: int) -> bytes:
    """PNG of N uint8 images, each in a square of `side` pixels, `columns` a row. Places left over are clear."""
    rows = -(-len(images_NHWC) // columns)
    sheet = Image.new("RGBA", (columns * side, rows * side))
    for number, image in enumerate(images_NHWC):
        larger = side > len(image)  # the pixels of a small image are shown as they are
        how = Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS
        row, column = divmod(number, columns)
        sheet.paste(Image.fromarray(image).resize((side, side), how), (column * side, row * side))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def webp(png: bytes) -> bytes:
    """A picture of ours in a fraction of the bytes."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        image.save(file, "WEBP", quality=70)
    return file.getvalue()


def _open(data: bytes, min_side: int) -> tuple[ImageFile.ImageFile, str]:
    """The file with its header read and judged, nothing decoded, and its format."""
    try:
        image = Image.open(io.BytesIO(slim(data)), formats=FORMATS)
    except TooManyParts as error:
        raise Rejected("too_large", str(error)) from None
    except UnidentifiedImageError:
        raise _unidentified(data) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Rejected("too_large", str(error)[:200]) from None
    except Exception as error:
        raise _unreadable(error) from None
    width, height = image.size
    kind = "JPEG" if image.format == "MPO" else image.format or "?"  # MPO: a JPEG with others behind it
    if width * height > MAX_PIXELS[kind]:
        raise Rejected("too_large", f"{width}x{height}")
    if min(width, height) < min_side:
        raise Rejected("too_small", f"{width}x{height}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Rejected("too_narrow", f"{width}x{height}")
    if kind == "JPEG":
        scans = data.count(b"\xff\xda")
        if scans * width * height > MAX_SCANS * MAX_PIXELS[kind]:
            raise Rejected("too_large", f"{width}x{height} in {scans} scans")
    if kind == "BMP" and len(data) > MAX_RLE and image.info.get("compression") in (1, 2):
        raise Rejected("too_large", f"{len(data):,} bytes of run lengths")
    if kind == "PNG":
        _to_eight_bits(image, depth=data[24])
    return image, kind


def _to_eight_bits(image: ImageFile.ImageFile, depth: int) -> None:
    """Pillow reads pixels of a PNG as 8 bits (but for gray of 16), and its transparent color as it is written."""
    clear = image.info.get("transparency")
    if isinstance(clear, tuple):
        image.info["transparency"] = tuple(value >> 8 if depth == 16 else value & 255 for value in clear)
    elif isinstance(clear, int) and image.mode == "L":
        image.info["transparency"] = clear % 2**depth * 255 // (2**depth - 1)


def _load(image: ImageFile.ImageFile) -> Image.Image:
    """Decoded, as L, RGB or RGBA. Pillow raises OSError, SyntaxError, ValueError, struct.error ... for bad files."""
    try:
        image.load()
        if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):  # Pillow would clip all above 255 to white
            gray = np.asarray(image).astype(np.uint16)
            eight_bits = Image.fromarray((gray >> 8).astype(np.uint8))
            if (clear := image.info.get("transparency")) is None:
                return eight_bits
            alpha = Image.fromarray(np.where(gray == clear, 0, 255).astype(np.uint8))
            return Image.merge("RGBA", (eight_bits, eight_bits, eight_bits, alpha))
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            return image.convert("RGBA")
        return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")
    except Exception as error:
        raise _unreadable(error) from None


def _square(image: Image.Image, size: int) -> Image.Image:
    """The middle square, resized while it has few channels, and put on white where it is transparent."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    square = image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    if square.mode == "RGBA":
        page = Image.new("RGBA", square.size, "white")
        page.alpha_composite(square)
        square = page
    return square if square.mode == "RGB" else square.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """1 to 8, from EXIF or XMP; 1 where neither has it or it cannot be read, since the pixels are good all the same."""
    if not {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"} & image.info.keys():
        return 1
    try:
        orientation = image.getexif().get(0x0112, 1)
        return orientation if isinstance(orientation, int) else 1
    except Exception:
        return 1


def _unidentified(data: bytes) -> Rejected:
    if data.startswith(_ALLOWED) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        return Rejected("broken", "its header cannot be read")
    for magic, name in _OTHERS.items():
        if data.startswith(magic):
            return Rejected("not_an_image", f"looks like {name}")
    if data[4:8] == b"ftyp":
        brand = data[8:12].decode("ascii", "replace")
        if brand in ("avif", "avis"):
            return Rejected("broken", "its header cannot be read")
        name = "HEIC" if brand in HEIC else "a video (MP4, MOV)"
        remedy = ", which is not read: convert it to JPEG" if brand in HEIC else ""
        return Rejected("not_an_image", f"looks like {name}{remedy}")
    if data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        kind = "SVG" if b"<svg" in data[:4096].lower() else "HTML or XML"
        return Rejected("not_an_image", f"looks like {kind}")
    return Rejected("not_an_image")


def _unreadable(error: Exception) -> Rejected:
    reason = "truncated" if "truncated" in str(error).lower() else "broken"
    return Rejected(reason, f"{type(error).__name__}: {error}"[:200])
