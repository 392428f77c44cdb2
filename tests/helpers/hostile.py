# ruff: noqa: E501 - a table, one case a line
"""Broken and odd files and rows, each with the outcome that is expected: "ok", or the reason of its reject."""

import gzip
import io
import struct
import zipfile
import zlib
from datetime import datetime

import numpy as np
from PIL import Image

SIDE = 40


def picture(mode="RGB", width=SIDE, height=SIDE):
    """A picture in which no two neighbors are alike."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    return Image.fromarray(noise, "RGBA").convert(mode) if mode != "RGBA" else Image.fromarray(noise, "RGBA")


def file_of(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name, data, crc=None):
    return (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) if crc is None else crc)
    )


MAGIC = b"\x89PNG\r\n\x1a\n"


def png(width, height, rows, depth=8, color=2, extra=b""):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return MAGIC + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def oriented(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return file_of(picture(), "JPEG", exif=exif)


def bmp_of(width, height, data=b"\0" * 64):
    return (
        b"BM"
        + struct.pack("<IHHI", 54 + len(data), 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        + data
    )


def zipped(bytes_inside):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", b"\0" * bytes_inside)
    return file.getvalue()


def many_scans(width, height, scans):
    """A progressive JPEG whose last scan is said again and again: each one is a walk over all its blocks."""
    data = file_of(Image.new("L", (width, height), 90), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * scans + b"\xff\xd9"


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def frames(kind, **options):
    return file_of(
        picture(), kind, save_all=True, append_images=[picture().rotate(90), picture().rotate(180)], **options
    )


def sixteen_bits():
    rows = np.random.default_rng(0).integers(0, 2**16, (SIDE, SIDE, 3)).astype(">u2")
    return png(SIDE, SIDE, b"".join(b"\0" + row.tobytes() for row in rows), depth=16)


def images():
    """[(name, bytes or None, outcome)]"""
    kinds = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
    jpeg, plain, webp, gif, bmp, avif = (file_of(picture(), kind) for kind in kinds)
    gray16 = Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (SIDE, SIDE)).astype(np.uint16))
    found = [
        ("png", plain, "ok"),
        ("jpeg", jpeg, "ok"),
        ("webp", webp, "ok"),
        ("webp without loss", file_of(picture("RGBA"), "WEBP", lossless=True), "ok"),
        ("gif", gif, "ok"),
        ("bmp", bmp, "ok"),
        ("animated gif", frames("GIF"), "ok"),
        ("animated webp", frames("WEBP"), "ok"),
        ("animated png", frames("PNG"), "ok"),
        ("mpo, two jpegs in one", file_of(picture(), "MPO", save_all=True, append_images=[picture()]), "ok"),
        *((f"png of mode {mode}", file_of(picture(mode)), "ok") for mode in ("1", "L", "LA", "P", "RGBA")),
        ("png with a transparent color", file_of(picture("P"), transparency=3), "ok"),
        ("png with a transparent gray", file_of(picture("L"), transparency=3), "ok"),
        ("png of 16 bits, gray", file_of(gray16), "ok"),
        ("png of 16 bits, color", sixteen_bits(), "ok"),
        ("interlaced png", png(8, 8, b"".join(b"\0" + bytes(range(24)) for _ in range(8))), "ok"),
        ("jpeg in cmyk", file_of(picture("CMYK"), "JPEG"), "ok"),
        ("jpeg in gray", file_of(picture("L"), "JPEG"), "ok"),
        ("progressive jpeg", file_of(picture(), "JPEG", progressive=True), "ok"),
        *((f"jpeg turned by EXIF {n}", oriented(n), "ok") for n in range(1, 9)),
        ("EXIF with a turn that is none", oriented(77), "ok"),
        ("EXIF of rubbish", file_of(picture(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 500), "ok"),
        ("EXIF of a megabyte", plain[:33] + chunk(b"eXIf", b"MM\0*\0\0\0\x08" + b"\xff" * 1_000_000) + plain[33:], "ok"),
        ("a color profile of rubbish", file_of(picture(), "JPEG", icc_profile=b"x" * 70_000), "ok"),
        ("jpeg with garbage behind it", jpeg + b"garbage" * 1000, "ok"),
        ("jpeg and zip in one", jpeg + zipped(1000), "ok"),
        ("png with a script behind it", plain + b"<script>alert(1)</script>", "ok"),
        ("8x8", file_of(picture(width=8, height=8)), "ok"),
        ("20 times as wide as high", file_of(picture(width=400, height=20)), "ok"),
        ("nothing", b"", "empty"),
        ("null", None, "empty"),
        ("one byte", b"\xff", "not_an_image"),
        ("zeros", b"\0" * 1000, "not_an_image"),
        ("noise", np.random.default_rng(3).bytes(5000), "not_an_image"),
        ("text", b"a cat sat on the mat", "not_an_image"),
        ("html", b"<html><body>404 Not Found</body></html>", "not_an_image"),
        ("html with a mark", b"\xef\xbb\xbf\n <!DOCTYPE html>", "not_an_image"),
        ("svg", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image/></svg>', "not_an_image"),
        ("pdf", b"%PDF-1.7\n", "not_an_image"),
        ("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n(x) run", "not_an_image"),
        ("tiff", file_of(picture(), "TIFF"), "not_an_image"),
        ("ico", file_of(picture(), "ICO"), "not_an_image"),
        ("ppm", file_of(picture(), "PPM"), "not_an_image"),
        ("photoshop", b"8BPS\0\1" + b"\0" * 100, "not_an_image"),
        ("heic", b"\0\0\0\x18ftypheic" + b"\0" * 100, "not_an_image"),
        ("mp4", b"\0\0\0\x18ftypisom" + b"\0" * 100, "not_an_image"),
        ("avif", avif, "ok"),
        ("avif with a transparent color", file_of(picture("RGBA"), "AVIF"), "ok"),
        ("animated avif", frames("AVIF"), "ok"),
        ("avif cut in two", avif[: len(avif) // 2], "broken"),
        ("only an avif's first bytes", avif[:20], "broken"),
        ("only a jpeg's first bytes", b"\xff\xd8\xff\xe0", "broken"),
        ("only a png's first bytes", MAGIC, "broken"),
        ("only a gif's first bytes", b"GIF89a", "broken"),
        ("gif and javascript in one", b"GIF89a/*" + b"\0" * 20 + b"*/=1;alert(1)", "broken"),
        ("png whose header has a bad sum", flipped(plain, 30), "broken"),
        ("png of 0x0", png(0, 0, b""), "broken"),
        ("png with 7 bits a pixel", png(8, 8, b"\0" * 200, depth=7), "broken"),
        ("png with rubbish for pixels", MAGIC + plain[8:33] + chunk(b"IDAT", b"rubbish" * 50) + chunk(b"IEND", b""), "broken"),
        ("png with too few rows, which Pillow takes for black ones", png(SIDE, SIDE, b"\0" + bytes(range(120))), "ok"),
        ("png cut in two", plain[: len(plain) // 2], "truncated"),
        ("jpeg cut in two", jpeg[: len(jpeg) // 2], "truncated"),
        ("gif cut in two", gif[: len(gif) // 2], "truncated"),
        ("bmp cut in two", bmp[: len(bmp) // 2], "truncated"),
        ("webp cut in two", webp[: len(webp) // 2], "broken"),
        ("gif without a frame", b"GIF89a" + struct.pack("<HHBBB", 40, 40, 0, 0, 0) + b";", "broken"),
        ("bmp of an absurd size", bmp_of(2_000_000_000, 2_000_000_000), "too_large"),
        ("bmp of a negative width", bmp_of(-5, -5), "too_large"),
        ("bmp of 8000x8000 in 64 bytes", bmp_of(8000, 8000), "truncated"),
        ("png that says 2 billion squared", png(2**31 - 1, 2**31 - 1, b""), "too_large"),
        ("webp that says 16383x16383", webp[:12] + b"VP8X\x0a\0\0\0\0\0\0\0" + b"\xfe\x3f\0" * 2 + webp[12:], "too_large"),
        ("1x1", file_of(picture(width=1, height=1)), "too_small"),
        ("7x40", file_of(picture(width=7)), "too_small"),
        ("65535x1", file_of(picture("L", 65_535, 1)), "too_small"),
        ("65000x8", file_of(picture("L", 65_000, 8)), "too_narrow"),
        ("421x20", file_of(picture(width=421, height=20)), "too_narrow"),
        ("white png", file_of(Image.new("RGB", (50, 50), "white")), "uniform"),
        ("blue jpeg", file_of(Image.new("RGB", (50, 50), (9, 40, 200)), "JPEG"), "uniform"),
        ("clear png", file_of(Image.new("RGBA", (50, 50), (9, 40, 200, 0))), "uniform"),
        ("one color but for an edge that is cut off", _edge(), "uniform"),
    ]  # fmt: skip
    assert len({name for name, _, _ in found}) == len(found)
    return found


def large():
    """Those that take a second or so to make, in the same form."""
    plain = file_of(picture())
    return [
        ("zip bomb named jpg", zipped(50_000_000), "not_an_image"),
        ("gzip bomb", gzip.compress(b"\0" * 5_000_000), "not_an_image"),
        ("png with a text bomb", plain[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 50_000_000)) + plain[33:], "ok"),
        ("png bomb", file_of(Image.new("1", (20_000, 6_000))), "too_large"),
        ("jpeg of 2000 scans", many_scans(2000, 2000, 2000), "too_large"),
        ("png of 8000x8000", file_of(Image.new("RGBA", (8000, 8000), (1, 2, 3, 4)), compress_level=1), "uniform"),
        ("jpeg of 8000x8000", file_of(Image.new("RGB", (8000, 8000)), "JPEG", progressive=True, subsampling=0), "uniform"),
        ("avif of 5600x5600", file_of(Image.new("RGB", (5600, 5600)), "AVIF", speed=10), "uniform"),
        ("avif of 8000x5000", file_of(Image.new("RGB", (8000, 5000)), "AVIF", speed=10), "too_large"),
        ("webp of 5600x5600", file_of(Image.new("RGBA", (5600, 5600)), "WEBP", lossless=True, method=0), "uniform"),
    ]  # fmt: skip


def _edge():
    image = Image.new("RGB", (120, 40), "white")
    image.paste("black", (0, 0, 10, 40))
    return file_of(image)


def rows():
    """[(name, columns that are not as in a good row, outcome)]"""
    return [
        ("a good row", {}, "ok"),
        ("no id", {"id": None}, "no_id"),
        ("an empty id", {"id": ""}, "no_id"),
        ("an id of spaces", {"id": " \t "}, "no_id"),
        ("an id with NUL", {"id": "a\0b"}, "bad_id"),
        ("an id of two lines", {"id": "a\nb"}, "bad_id"),
        ("an id that colors the terminal", {"id": "\x1b[31mred"}, "bad_id"),
        ("an id of a megabyte", {"id": "x" * 1_000_000}, "bad_id"),
        ("an id of 512 characters", {"id": "é" * 512}, "ok"),
        ("an id of 513 characters", {"id": "é" * 513}, "bad_id"),
        ("an id that is a path", {"id": "../../etc/passwd"}, "ok"),
        ("an id that is SQL", {"id": "'; drop table posts; --"}, "ok"),
        ("the id of the good row", {"id": "a good row"}, "duplicate_id"),
        ("the id of the good row once more", {"id": "a good row"}, "duplicate_id"),
        ("an id whose first row is broken, first", {"id": "twice", "image": b"<html>"}, "not_an_image"),
        ("an id whose first row is broken, second", {"id": "twice"}, "ok"),
        ("no tags", {"tags": None}, "no_tags"),
        ("empty tags", {"tags": []}, "no_tags"),
        ("a null for a tag", {"tags": [None]}, "no_tags"),
        ("a null beside a tag", {"tags": [None, "cat"]}, "ok"),
        ("tags of signs only", {"tags": ["!!!", "#", ""]}, "no_tags"),
        ("machine tags only", {"tags": ["geo:lat=52.1"]}, "no_tags"),
        ("html for a tag", {"tags": ["<img src=x onerror=alert(1)>"]}, "ok"),
        ("quotes in a tag", {"tags": ["'cat'", '"dog"', "`cow`"]}, "ok"),
        ("NUL in a tag", {"tags": ["c\0at"]}, "ok"),
        ("a tag of 10,000 characters", {"tags": ["x" * 10_000]}, "no_tags"),
        ("a tag of 10,000 characters beside one", {"tags": ["x" * 10_000, "cat"]}, "ok"),
        ("a tag of a megabyte", {"tags": ["x" * 1_000_000, "cat"]}, "too_many_tags"),
        ("a thousand tags", {"tags": [f"tag{n}" for n in range(1000)]}, "ok"),
        ("a million tags", {"tags": ["cat"] * 1_000_000}, "too_many_tags"),
        ("the right to left mark", {"tags": ["\u202egpj.cat"]}, "ok"),
        ("a user who is not a number", {"user": "nan"}, "ok"),
        ("an empty user", {"user": ""}, "ok"),
        ("a clock in the future", {"taken_at": datetime(9999, 1, 1)}, "ok"),
        ("a clock before photography", {"taken_at": datetime(1, 1, 1)}, "ok"),
        ("a clock that starts in 1970", {"taken_at": datetime(1970, 1, 1)}, "ok"),
        ("a split in capitals", {"split": " Train "}, "ok"),
        ("a split of spaces", {"split": "  "}, "ok"),
        ("a split of another name", {"split": "<b>holdout</b>"}, "bad_split"),
        ("a video that the source names", {"reason": "video", "detail": "marker 1"}, "video"),
        ("a source that says nothing", {"reason": "", "detail": None}, "ok"),
        ("all is wrong", {"id": None, "tags": None, "image": None, "split": "x"}, "no_id"),
    ]  # fmt: skip
