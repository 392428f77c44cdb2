import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from moe_core.data.images import RAW_UP_TO, Rejected, contact_sheet, decode, encode, read_pixels, webp


def pixels_of(stored, size):
    pixels_HWC = np.empty((size, size, 3), np.uint8)
    read_pixels(stored, pixels_HWC)
    return pixels_HWC


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


CORNERS = Image.new("RGB", (40, 20), "white")  # red in the upper left, blue in the upper right of the middle square
CORNERS.paste("red", (10, 0, 20, 10))
CORNERS.paste("blue", (20, 0, 30, 10))
R, B, W = (255, 0, 0), (0, 0, 255), (255, 255, 255)
UPRIGHT = {  # upper left, upper right, lower left, lower right, when turned as each value of EXIF's orientation says
    1: (R, B, W, W),
    2: (B, R, W, W),
    3: (W, W, B, R),
    4: (W, W, R, B),
    5: (R, W, B, W),
    6: (W, R, W, B),
    7: (W, B, W, R),
    8: (B, W, R, W),
}


def corners(picture, size):
    pixels = np.frombuffer(picture.pixels, np.uint8).reshape(size, size, 3)
    low, high = size // 4, 3 * size // 4
    return [pixels[y, x].tolist() for y in (low, high) for x in (low, high)]


@pytest.mark.parametrize(("value", "wanted"), UPRIGHT.items())
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_picture_is_turned_as_its_exif_says(kind, value, wanted):
    exif = Image.Exif()
    exif[0x0112] = value
    data = file_of(CORNERS, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    picture = decode(data, 16)
    assert (picture.width, picture.height) == (40, 20)
    assert np.abs(np.subtract(corners(picture, 16), wanted)).max() <= 12
    assert np.abs(np.subtract(corners(picture, 16), corners(decode(_turned(data), 16), 16))).max() <= 12


def _turned(data):
    return file_of(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("store", ["raw", "jpeg", "png", "webp"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_nothing_but_pixels_is_stored(kind, store):
    exif = Image.Exif()
    exif[0x010F] = "SecretCamera"
    exif.get_ifd(0x8825)[29] = "SecretPlace"  # GPS
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    data = file_of(noise, kind, exif=exif, icc_profile=profile, xmp=b"<x:SecretXmp/>")
    if kind == "JPEG":
        data = file_of(noise, kind, exif=exif, icc_profile=profile, comment=b"SecretComment")
    assert b"Secret" in data
    stored = encode(decode(data, 32).pixels, 32, store)
    assert b"Secret" not in stored
    if store != "raw":
        with Image.open(io.BytesIO(stored)) as image:
            assert dict(image.getexif()) == {}
            assert {"exif", "icc_profile", "xmp", "comment"} & image.info.keys() == set()


def test_sixteen_bits_are_scaled_to_eight():
    levels = Image.fromarray(np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16).repeat(4, 0).repeat(4, 1))
    square = np.frombuffer(decode(file_of(levels), 8).pixels, np.uint8).reshape(8, 8, 3)
    assert [square[y, x, 0] for y in (0, 7) for x in (0, 7)] == [0, 100, 200, 255]


@pytest.mark.parametrize("kind", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_kind_of_pixel_becomes_rgb(kind):
    halves = Image.new("RGB", (16, 16), "white")
    halves.paste("black", (0, 0, 8, 16))
    format = "JPEG" if kind == "CMYK" else "PNG"  # Pillow writes CMYK inverted, as Adobe does
    square = np.frombuffer(decode(file_of(halves.convert(kind), format), 16).pixels, np.uint8).reshape(16, 16, 3)
    assert square[8, 2].tolist() == pytest.approx([0, 0, 0], abs=3)
    assert square[8, 13].tolist() == pytest.approx([255, 255, 255], abs=3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    blue = Image.new("RGB", RED.size, "blue")
    picture = decode(file_of(RED, kind, save_all=True, append_images=[blue, blue]), 8)
    assert list(picture.pixels[:3]) == pytest.approx([255, 0, 0], abs=3)


@pytest.mark.parametrize("bad", [b"II*\0\xff\xff\xff\xff", b"rubbish", b""])
def test_exif_that_cannot_be_read_does_not_cost_the_picture(bad):
    assert decode(file_of(RED, "JPEG", exif=b"Exif\0\0" + bad), 8).width == 40


def test_a_transparent_pixel_does_not_color_its_neighbors():
    half = Image.new("RGBA", (16, 16), (255, 0, 0, 0))  # red where nobody sees it
    half.paste((0, 0, 0, 255), (0, 0, 8, 16))
    square = np.frombuffer(decode(file_of(half), 8).pixels, np.uint8).reshape(8, 8, 3)
    assert np.ptp(square.astype(int), axis=2).max() == 0  # gray everywhere


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.effect_noise((7, 40), 90), "too_small"),
        (Image.effect_noise((168, 8), 90), "too_narrow"),
        (Image.new("RGB", (40, 40), "teal"), "uniform"),
    ],
)
def test_what_shows_nothing_has_a_reason(image, reason):
    with pytest.raises(Rejected) as why:
        decode(file_of(image), 8, min_side=8, reject_uniform=True)
    assert why.value.reason == reason


def test_warnings_are_as_they_were_after_decoding_in_threads():
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: decode(file_of(RED), 8), range(40)))
    assert list(warnings.filters) == before


@pytest.mark.parametrize("store", ["auto", "raw", "jpeg", "png", "webp"])
@pytest.mark.parametrize("size", [8, RAW_UP_TO, RAW_UP_TO + 1])
def test_stored_pixels_come_back(size, store):
    pixels = bytes([10, 200, 90]) * size * size
    assert pixels_of(encode(pixels, size, store), size)[3, 3].tolist() == pytest.approx([10, 200, 90], abs=5)


def test_small_pictures_are_raw_and_large_ones_files_unless_told_otherwise():
    small, large = bytes(3 * RAW_UP_TO**2), bytes(3 * (RAW_UP_TO + 1) ** 2)
    assert encode(small, RAW_UP_TO) == small
    assert encode(large, RAW_UP_TO + 1)[:2] == b"\xff\xd8"
    assert encode(large, RAW_UP_TO + 1, "raw") == large
    assert encode(small, RAW_UP_TO, "png")[:4] == b"\x89PNG"


def test_a_file_as_long_as_raw_pixels_is_told_from_them(monkeypatch):
    pixels = np.random.default_rng(0).bytes(3 * 64 * 64)
    written = Image.Image.save
    length = len(pixels)

    def padded(self, file, *arguments, **more):  # a file of exactly that length
        written(self, file, *arguments, **more)
        file.write(b"\0" * (length - len(file.getvalue())))

    monkeypatch.setattr(Image.Image, "save", padded)
    stored = encode(pixels, 64, "jpeg")
    assert len(stored) == length + 1
    assert pixels_of(stored, 64).shape == (64, 64, 3)


@pytest.mark.parametrize("stored", [b"", b"nonsense", encode(bytes(3 * 9 * 9), 9, "png")])
def test_stored_bytes_that_are_no_picture_of_this_size_are_an_error(stored):
    with pytest.raises(ValueError, match="ingest again"):
        pixels_of(stored, 8)


def test_a_contact_sheet_has_all_pictures():
    """Four red ones and a blue one in rows of three: red and blue in the second row, then a clear place."""
    images = np.zeros((5, 4, 4, 3), np.uint8)
    images[:4, ..., 0], images[4, ..., 2] = 255, 255
    png = contact_sheet(images, columns=3, side=8)
    sheet = Image.open(io.BytesIO(png))
    assert sheet.size == (3 * 8, 2 * 8)
    assert [sheet.getpixel((x, 12)) for x in (4, 12, 20)] == [(255, 0, 0, 255), (0, 0, 255, 255), (0, 0, 0, 0)]
    assert Image.open(io.BytesIO(webp(png))).format == "WEBP"
