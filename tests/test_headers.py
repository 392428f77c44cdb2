"""Profiles, texts and comments of an image file cost neither its pixels nor time."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from helpers import hostile
from moe_core.data import headers, images
from moe_core.data.headers import PARTS, slim
from moe_core.data.images import Rejected, decode

SIDE = 40
IMAGE = hostile.picture()
PNG, JPEG, GIF, WEBP = (hostile.file_of(IMAGE, kind) for kind in ("PNG", "JPEG", "GIF", "WEBP"))
IDAT = PNG.index(b"IDAT") - 4
PROFILE = b"profile\0\0" + zlib.compress(bytes(2_000_000))


def chunks(*more, before=True):
    """The picture with chunks before its pixels or behind them."""
    place = IDAT if before else len(PNG) - 12
    return PNG[:place] + b"".join(hostile.chunk(name, data) for name, data in more) + PNG[place:]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("name", "data"),
    [
        (b"iCCP", PROFILE),
        (b"iCCP", b"profile\0\7" + b"x" * 10),
        (b"zTXt", PROFILE),
        (b"zTXt", b"text\0\5" + b"x" * 10),
        (b"iTXt", b"text\0\1\0\0\0" + zlib.compress(bytes(2_000_000))),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2_000_000))),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(2_000_000))),
        (b"tEXt", b"text\0" + bytes(70_000_000)),
        (b"pHYs", b"\0\0"),
        (b"gAMA", b""),
        (b"cHRM", b"\0"),
        (b"sRGB", b""),
        (b"acTL", b"\0"),
        (b"fcTL", b""),
        (b"eXIf", bytes(3_000_000)),
        (b"vpAg", b"a vendor's own"),
    ],
)
def test_whatever_a_png_says_beside_its_pixels_they_are_read(name, data, before):
    assert decode(chunks((name, data), before=before), 32).pixels == decode(PNG, 32).pixels


def test_a_chunk_that_is_not_needed_may_have_a_wrong_sum():
    bad = PNG[:IDAT] + hostile.chunk(b"tIME", b"1234567", crc=1) + PNG[IDAT:]
    assert decode(bad, 32).pixels == decode(PNG, 32).pixels


def test_a_transparency_that_is_too_short_is_none():
    assert decode(chunks((b"tRNS", b"\0")), 32).pixels == decode(PNG, 32).pixels


def gray(depth, values, clear, color=0):
    """A PNG of one row for each value."""
    width = 64
    rows = b""
    for value in values:
        bits = "".join(f"{one:0{depth}b}" for one in (value if color else [value]))
        line = int(bits * width, 2).to_bytes(len(bits) * width // 8, "big")
        rows += (b"\0" + line) * (width // len(values))
    said = b"".join(struct.pack(">H", one) for one in (clear if color else [clear]))
    data = hostile.png(width, width // len(values) * len(values), rows, depth, color)
    place = data.index(b"IDAT") - 4
    return data[:place] + hostile.chunk(b"tRNS", said) + data[place:]


@pytest.mark.parametrize(("depth", "clear", "other"), [(1, 0, 1), (2, 1, 2), (4, 3, 9), (8, 7, 200), (16, 700, 50_000)])
def test_a_transparent_gray_of_any_depth_is_white_and_others_stay(depth, clear, other):
    pixels = np.frombuffer(decode(gray(depth, (clear, other), clear), 64).pixels, np.uint8).reshape(64, 64, 3)
    assert pixels[8, 8].tolist() == [255] * 3
    assert pixels[56, 56].tolist() == [other >> 8 if depth == 16 else other * 255 // (2**depth - 1)] * 3


def test_black_that_is_transparent_in_sixteen_bits_is_white_and_nothing_else_is():
    pixels = np.frombuffer(decode(gray(16, (0, 256), 0), 64).pixels, np.uint8).reshape(64, 64, 3)
    assert (pixels[8, 8].tolist(), pixels[56, 56].tolist()) == ([255] * 3, [1] * 3)


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_color_of_any_depth_is_white_and_others_stay(depth):
    most = 2**depth - 1
    clear, other = (most // 3, 0, most), (0, most, 0)
    pixels = np.frombuffer(decode(gray(depth, (clear, other), clear, color=2), 64).pixels, np.uint8)
    pixels = pixels.reshape(64, 64, 3)
    assert (pixels[8, 8].tolist(), pixels[56, 56].tolist()) == ([255] * 3, [0, 255, 0])


XMP = b'<x:xmpmeta xmlns:tiff="http://ns.adobe.com/tiff/1.0/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
EXIF = Image.Exif()
EXIF[0x0112] = 6
HEXADECIMAL = b"\nexif\n  32\n" + EXIF.tobytes().hex().encode()
TURNED = {
    "eXIf": chunks((b"eXIf", EXIF.tobytes()[6:])),
    "iTXt": chunks((b"pHYs", b""), (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
    "iTXt, compressed": chunks((b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP))),
    "zTXt": chunks(
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n  32\n" + EXIF.tobytes().hex().encode()))
    ),
    "jpeg": hostile.file_of(IMAGE, "JPEG", exif=EXIF, comment=b"words", icc_profile=b"x" * 200_000),
}


@pytest.mark.parametrize("how", TURNED)
def test_which_way_is_up_is_still_known(how):
    straight = np.frombuffer(decode(JPEG if how == "jpeg" else PNG, 32).pixels, np.uint8).reshape(32, 32, 3)
    assert decode(TURNED[how], 32).pixels == np.rot90(straight, -1).tobytes()


def segment(marker, data):
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def comments(count, size=1):
    return (
        GIF[:13] + GIF[13 : 13 + 768] + (b"\x21\xfe" + (bytes([size]) + b"c" * size) + b"\0") * count + GIF[13 + 768 :]
    )


MANY = {
    "png": PNG[:IDAT] + hostile.chunk(b"teSt", b"") * 2_000_000 + PNG[IDAT:],
    "png, behind its pixels": PNG[:-12] + hostile.chunk(b"tEXt", b"a\0b") * 1_000_000 + PNG[-12:],
    "png of empty pixels": PNG[:IDAT] + hostile.chunk(b"IDAT", b"") * 1_000_000 + PNG[IDAT:],
    "jpeg": JPEG[:2] + segment(0xFE, b"c") * 1_000_000 + JPEG[2:],
    "jpeg of EXIF": JPEG[:2] + segment(0xE1, b"Exif\0\0" + b"x") * 1_000_000 + JPEG[2:],
    "jpeg of tables": JPEG[:2] + segment(0xDB, bytes(65)) * 200_000 + JPEG[2:],
    "gif": comments(1_000_000),
    "gif of blocks": GIF[:781] + b"\x21\xfe" + b"\1c" * 5_000_000 + b"\0" + GIF[781:],
}


@pytest.mark.parametrize("name", MANY)
def test_more_parts_than_any_photograph_has_are_a_reject(name, monkeypatch):
    """Pillow is not asked: it takes a second for each hundred thousand, and copies what came before."""
    monkeypatch.setattr(images.Image, "open", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(Rejected, match=rf"^too_large: more than {PARTS:,} parts"):
        decode(MANY[name], 32)


@pytest.mark.parametrize(
    "data",
    [
        JPEG[:2] + b"\xff" * 50_000_000 + JPEG[2:],
        JPEG[:2] + bytes(50_000_000) + JPEG[2:],
        JPEG[:2] + segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 1000 + JPEG[2:],
        JPEG[:2] + segment(0xED, b"Photoshop 3.0\0" + b"8BIM\0\0\0\0\0\0\0\0" * 5000) * 500 + JPEG[2:],
        comments(20_000, 255),
        GIF[:781] + b"\5" * 50_000_000 + GIF[781:],
    ],
    ids=["padding", "zeros", "EXIF", "Photoshop", "comments", "rubbish"],
)
def test_what_is_not_needed_is_not_parsed(data):
    assert len(slim(data)) < 100_000
    assert decode(data, 32).pixels == decode(GIF if data[:3] == b"GIF" else JPEG, 32).pixels


def test_files_without_anything_else_are_passed_on_as_they_are():
    for data in (PNG, WEBP, hostile.file_of(IMAGE, "BMP"), b"", b"\xff\xd8", headers.PNG, b"GIF89a", b"nothing"):
        assert slim(data) == data


def test_pixels_are_those_of_the_whole_file():
    def pixels(data):
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGBA").tobytes()

    good = [(name, data) for name, data, outcome in hostile.images() if outcome == "ok"]
    assert len(good) > 30
    assert [name for name, data in good if pixels(data) != pixels(slim(data))] == []


def test_run_lengths_that_take_minutes_are_not_decoded():
    """Pillow decodes them in Python, and ends of lines make no pixels."""
    plain = hostile.file_of(IMAGE.convert("P"), "BMP")
    for times, said in ((1000, "broken"), (images.MAX_RLE, "too_large")):
        data = bytearray(plain[:54] + bytes(1024) + bytes(2) * times)
        struct.pack_into("<I", data, 30, 1)
        with pytest.raises(Rejected, match=f"^{said}"):
            decode(bytes(data), 32)
