import io

import numpy as np
import pytest
from PIL import Image

from moe_core.data.duplicates import signature
from moe_core.data.images import RAW_UP_TO, Rejected, contact_sheet, decode, encode, pixels_of


def file_of(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


RED = Image.new("RGB", (40, 20), "red")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_formats_of_the_list_are_read(kind):
    picture = decode(file_of(RED, kind), 8)
    assert (picture.width, picture.height, picture.format) == (40, 20, kind)
    assert np.frombuffer(picture.pixels, np.uint8).reshape(8, 8, 3)[4, 4].tolist() == pytest.approx([255, 0, 0], abs=3)


def test_a_format_outside_the_list_is_no_image():
    with pytest.raises(Rejected) as why:
        decode(file_of(RED, "TIFF"), 8)
    assert why.value.reason == "not_an_image"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "not_an_image"),
        (file_of(Image.effect_noise((64, 64), 90), "PNG")[:-500], "truncated"),
        (file_of(Image.effect_noise((64, 64), 90), "JPEG")[:600], "truncated"),
    ],
)
def test_what_is_no_image_has_a_reason(data, reason):
    with pytest.raises(Rejected) as why:
        decode(data, 8)
    assert why.value.reason == reason


def test_a_bomb_is_refused_before_it_is_decoded():
    bomb = file_of(Image.new("1", (20_000, 6_000)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(Rejected) as why:
        decode(bomb, 8)
    assert (why.value.reason, why.value.detail) == ("too_large", "20000x6000")


def test_transparent_pixels_are_white():
    clear = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    assert set(decode(file_of(clear), 8).pixels) == {255}


def test_the_middle_square_is_kept():
    wide = Image.new("RGB", (30, 10), "black")
    wide.paste("white", (10, 0, 20, 10))
    assert min(decode(file_of(wide), 8).pixels) > 230  # but for the ringing of the filter


def test_a_picture_lies_on_its_side_when_its_file_says_so():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    tall = Image.new("RGB", (20, 20), "black")
    tall.paste("white", (0, 0, 20, 10))
    turned = np.frombuffer(decode(file_of(tall, "JPEG", exif=exif), 20).pixels, np.uint8).reshape(20, 20, 3)
    assert turned[10, 15].mean() > 200 > 50 > turned[10, 4].mean()


def test_a_picture_has_the_signature_of_its_pixels():
    picture = decode(file_of(Image.effect_noise((40, 40), 90)), 32)
    pixels = np.frombuffer(picture.pixels, np.uint8).reshape(1, 32, 32, 3)
    assert picture.signature == signature(pixels).tobytes()


@pytest.mark.parametrize("size", [RAW_UP_TO, RAW_UP_TO + 1])
def test_stored_pixels_come_back(size):
    pixels = bytes([10, 200, 90]) * size * size
    assert pixels_of(encode(pixels, size), size)[3, 3].tolist() == pytest.approx([10, 200, 90], abs=4)


def test_a_contact_sheet_has_all_pictures():
    sheet = Image.open(io.BytesIO(contact_sheet(np.zeros((5, 4, 4, 3), np.uint8), columns=3, scale=2)))
    assert sheet.size == (3 * 4 * 2, 2 * 4 * 2)
