"""Bodies of requests: read within bounds, taken apart into images, decoded as at ingest.

A body is one image, whatever its Content-Type says; or multipart/form-data, each part that has a file name an image;
or application/x-npy, an array of pixels (N, S, S, 3) uint8 of the mixture's size, which is not decoded.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from moe_core.data.images import REASONS, Rejected, decode
from moe_core.service.limits import Limits
from moe_core.text import shown

TOGETHER = 16  # images that a thread decodes in one go
NPY, MULTIPART = "application/x-npy", "multipart/form-data"
NAME = 200  # characters of a file's name that are kept


class BadBody(Exception):
    """A body that cannot be answered, with the HTTP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Images:
    """Images of a request: their names, None for one without, and bytes of files or, from an array, pixels."""

    names: list[str | None]
    files: list[bytes] = field(default_factory=list)
    pixels_NHWC: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)


def declared_length(request: Request, limits: Limits) -> int:
    """Bytes that a body may have: those that it declares, or the most. Raises BadBody where they are too many."""
    text = request.headers.get("content-length", "")
    length = int(text) if text.isdecimal() and len(text) < 20 else limits.body_bytes
    if length > limits.body_bytes:
        raise too_large(limits)
    return length


async def read_body(request: Request, limits: Limits) -> bytes:
    """All of a body. Raises BadBody once it is longer than it may be."""
    chunks, length = [], 0
    async for chunk in request.stream():
        length += len(chunk)
        if length > limits.body_bytes:
            raise too_large(limits)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def too_large(limits: Limits) -> BadBody:
    return BadBody(413, f"the body is larger than {limits.body_bytes:,} bytes (--body): send fewer images a request")


def images_in(body: bytes, content_type: str, size: int, limits: Limits) -> Images:
    """The images of a body. Raises BadBody for one that has none, too many, or a form that cannot be read."""
    kind, options = parse_options_header(content_type)
    if kind == MULTIPART.encode():
        images = _parts(body, options.get(b"boundary", b""), limits)
    elif kind == NPY.encode():
        pixels_NHWC = _array(body, size)
        images = Images([None] * len(pixels_NHWC), pixels_NHWC=pixels_NHWC)
    else:
        images = Images([None], [body])
    if not images:
        raise BadBody(422, "no image: wanted a file as the body, or parts of multipart/form-data with file names")
    if len(images) > limits.images:
        raise _too_many(limits)
    return images


def _too_many(limits: Limits) -> BadBody:
    return BadBody(413, f"more than {limits.images:,} images in one request (--images): send several requests")


def _parts(body: bytes, boundary: bytes, limits: Limits) -> Images:
    """Parts of a form that have a file name."""
    images = Images([])
    header, value, disposition = bytearray(), bytearray(), b""
    chunks: list[bytes] = []  # of the part that is read

    def part_begins() -> None:
        nonlocal disposition
        disposition = b""
        chunks.clear()

    def header_ends() -> None:
        nonlocal disposition
        if bytes(header).lower() == b"content-disposition":
            disposition = bytes(value)
        header.clear()
        value.clear()

    def part_ends() -> None:
        _, options = parse_options_header(disposition)
        if b"filename" not in options:
            return
        if len(images) == limits.images:
            raise _too_many(limits)
        images.names.append(shown(options[b"filename"].decode("utf-8", "replace"), NAME))
        images.files.append(b"".join(chunks))

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": part_begins,
                "on_part_data": lambda data, start, end: chunks.append(data[start:end]),
                "on_part_end": part_ends,
                "on_header_field": lambda data, start, end: header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: value.extend(data[start:end]),
                "on_header_end": header_ends,
            },
        )
        parser.write(body)
        parser.finalize()
    except (MultipartParseError, ValueError) as error:
        raise BadBody(422, f"the form cannot be read: {shown(error, 200)}") from None
    return images


def _array(body: bytes, size: int) -> np.ndarray:
    """(N, S, S, 3) uint8: pixels in numpy's format. Its header is a literal; nothing is unpickled."""
    wanted = f"an array of uint8 and shape (N, {size}, {size}, 3) in C order"
    try:
        file = io.BytesIO(body)
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
            version
        ]
        shape, fortran, dtype = read_header(file, max_header_size=1000)
    except Exception:  # a bad header raises whatever Python's parser and numpy's types do
        raise BadBody(422, f"the body is no .npy file: wanted {wanted}") from None
    if dtype != np.uint8 or fortran or len(shape) != 4 or shape[1:] != (size, size, 3):
        raise BadBody(422, f"the array is {shown(dtype)} of shape {shown(shape)}: wanted {wanted}")
    pixels = np.frombuffer(body, np.uint8, offset=file.tell())
    if len(pixels) != shape[0] * size * size * 3:
        raise BadBody(422, f"the array has {len(pixels):,} bytes, its shape is {shown(shape)}: wanted {wanted}")
    return pixels.reshape(shape).copy()  # torch takes no memory that is read alone


def decoded(files: Sequence[bytes], size: int) -> list[tuple[bytes, str]]:
    """(pixels, "") of each file, or (b"", why it is not used), as posts are decoded at ingest."""
    found = []
    for data in files:
        try:
            found.append((decode(data, size).pixels, ""))
        except Rejected as why:
            found.append((b"", f"{why}: {REASONS[why.reason]}"))
    return found
