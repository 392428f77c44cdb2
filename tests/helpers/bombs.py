"""Sources of a few kilobytes that unfold to gigabytes, or whose headers never end: [(name, file name, write)]."""

import gzip
import struct

import pyarrow as pa
import pyarrow.parquet as pq

from helpers import hostile

PICTURE = hostile.file_of(hostile.picture())
MILLION, LARGE = 1_000_000, 40_000_000
ROWS = 1000


def shared(kind, value, rows=ROWS):
    """One value, held once and used by each row."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value], kind))


def table(rows=ROWS, **columns):
    plain = {
        "id": pa.array([f"p{n}" for n in range(rows)]),
        "image": shared(pa.binary(), PICTURE, rows),
        "tags": pa.array([["cat"]] * rows),
    }
    return pa.table(plain | columns)


def parquet(path, rows, **options):
    pq.write_table(rows, path, compression="zstd", write_statistics=False, **options)


def arrow(path, rows, new=pa.ipc.new_file, **options):
    with new(path, rows.schema, options=pa.ipc.IpcWriteOptions(**options)) as file:
        file.write_table(rows)


def views(kind, value):
    """Rows that are windows into one and the same value."""
    buffer = pa.array([value], kind).buffers()[1:]
    plain = {
        "id": pa.array([f"p{n}" for n in range(ROWS)]),
        "image": pa.Array.from_buffers(kind, ROWS, [None, pa.py_buffer(buffer[0].to_pybytes() * ROWS), *buffer[1:]]),
        "tags": pa.array([["cat"]] * ROWS),
    }
    return pa.table(plain)


def list_views():
    words = pa.array(["cat"] * MILLION).dictionary_encode()
    starts, lengths = pa.array([0] * ROWS, pa.int32()), pa.array([MILLION] * ROWS, pa.int32())
    return table(tags=pa.ListViewArray.from_arrays(starts, lengths, words))


def header(name=b"a", size=0, kind=b"0"):
    """512 bytes; a size of less than nothing as GNU tar writes it."""
    said = b"%011o\0" % size if size >= 0 else struct.pack(">iq", -1, size)
    block = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + said + b"00000000000\0" + b" " * 8 + kind
    block = block.ljust(257, b"\0") + b"ustar\x0000"
    block = bytearray(block.ljust(512, b"\0"))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data):
    return data + bytes(-len(data) % 512)


def record(key, value):
    length = len(key) + len(value) + 3
    while len(b"%d " % length) + len(key) + len(value) + 2 != length:
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


MEMBER = header(b"a.png", len(PICTURE)) + padded(PICTURE)
END = bytes(1024)


def extended(records, kind=b"x"):
    return header(b"records", len(records), kind) + padded(records)


def tar(path, *blocks, close=END):
    path.write_bytes(b"".join(blocks) + close)


def sparse():
    """GNU's old format, whose map goes on block after block."""
    first = bytearray(header(b"a.png", 0, b"S"))
    first[482] = 1
    first[148:156] = b" " * 8
    first[148:156] = b"%06o\0 " % sum(first)
    return bytes(first) + (bytes(504) + b"\1" + bytes(7)) * 20_000


def nothing(rows):
    kinds = {"id": pa.string(), "image": pa.binary(), "tags": pa.string()}
    return pa.table({name: pa.nulls(rows, kind) for name, kind in kinds.items()})


def few(count, **columns):
    return table(count).select(["id", "tags"]).append_column("image", columns["image"])


def images_of_one_width():
    zeros = pa.FixedSizeBinaryArray.from_buffers(pa.binary(MILLION), 200, [None, pa.py_buffer(bytes(200 * MILLION))])
    return few(200, image=zeros)


def alike(path):
    """Each picture begins as the one before it, and only the rest is stored."""
    encodings = {"image": "DELTA_BYTE_ARRAY", "id": "PLAIN", "tags.list.element": "PLAIN"}
    parquet(path, few(60, image=pa.array([bytes(10 * MILLION)] * 60)), use_dictionary=False, column_encoding=encodings)


def words_of_lists():
    return pa.ListArray.from_arrays(list(range(0, 4 * ROWS + 1, 4)), shared(pa.string(), "x" * LARGE, 4 * ROWS))


def list_of_nothing(length=2**31 - 1):
    nothing = pa.Array.from_buffers(pa.null(), length, [None])
    return few(1, image=pa.array([PICTURE])).set_column(1, "tags", pa.FixedSizeListArray.from_arrays(nothing, length))


def many_words():
    words = pa.nulls(120 * MILLION, pa.string())
    return (
        few(1, image=pa.array([PICTURE]))
        .drop("tags")
        .append_column("tags", pa.ListArray.from_arrays([0, len(words)], words))
    )


def zipped(path, *parts):
    """Of bytes, or of numbers of zeros."""
    with gzip.open(path, "wb", 1) as file:
        for part in parts:
            for _ in range(part // MILLION if isinstance(part, int) else 1):
                file.write(bytes(MILLION) if isinstance(part, int) else part)


def struct_of(image):
    return pa.StructArray.from_arrays([image], ["bytes"])


HOLES = b"".join(record(b"GNU.sparse." + k, v) for k, v in ((b"major", b"1"), (b"minor", b"0"), (b"name", b"a.png")))
GIGABYTE = 1100 * MILLION // 512 * 512

# those that take no time to write
BOMBS = [
    ("image in a dictionary", "x.parquet", lambda p: parquet(p, table(image=shared(pa.binary(), bytes(LARGE))))),
    ("large image in a dictionary", "x.parquet", lambda p: parquet(p, table(image=shared(pa.large_binary(), bytes(LARGE))))),
    ("image of a struct", "x.parquet", lambda p: parquet(p, table(image=struct_of(shared(pa.binary(), bytes(LARGE)))))),
    ("a million rows of one image", "x.parquet", lambda p: parquet(p, table(MILLION, image=shared(pa.binary(), bytes(100_000), MILLION)))),
    ("id in a dictionary", "x.parquet", lambda p: parquet(p, table(id=shared(pa.string(), "x" * LARGE)))),
    ("tags in a dictionary", "x.parquet", lambda p: parquet(p, table(tags=shared(pa.string(), "a," * (LARGE // 2))))),
    ("tag in a dictionary", "x.parquet", lambda p: parquet(p, table(tags=words_of_lists()))),
    ("images of one width", "x.parquet", lambda p: parquet(p, images_of_one_width())),
    ("images that begin alike", "x.parquet", alike),
    ("a list of a hundred million tags", "x.parquet", lambda p: parquet(p, many_words())),
    ("rows of nothing", "x.parquet", lambda p: parquet(p, nothing(20 * MILLION))),
    ("image in a dictionary", "x.arrow", lambda p: arrow(p, table(image=shared(pa.binary(), bytes(LARGE))), compression="zstd")),
    ("image in a dictionary of a stream", "x.arrow", lambda p: arrow(p, table(image=shared(pa.binary(), bytes(LARGE))), pa.ipc.new_stream, compression="zstd")),
    ("tags in a dictionary", "x.arrow", lambda p: arrow(p, table(tags=shared(pa.string(), "a," * (LARGE // 2))), compression="zstd")),
    ("one picture in all rows", "x.arrow", lambda p: arrow(p, views(pa.binary_view(), bytes(LARGE)), compression="zstd")),
    ("one list in all rows", "x.arrow", lambda p: arrow(p, list_views(), compression="zstd")),
    ("a list of two billion nothings", "x.arrow", lambda p: arrow(p, list_of_nothing())),
    ("rows of nothing", "x.arrow", lambda p: arrow(p, nothing(20 * MILLION), compression="zstd")),
    ("long name that is not there", "x.tar", lambda p: tar(p, header(b"x", 8**11 - 1, b"L"))),
    ("long names behind long names", "x.tar", lambda p: tar(p, *[header(b"x", 512, b"L") + b"n" * 512] * 5000, MEMBER)),
    ("long name of less than nothing", "x.tar", lambda p: tar(p, header(b"x", -512, b"L"), MEMBER * 100)),
    ("records of digits", "x.tar", lambda p: tar(p, extended(b"1" * 900_000), MEMBER)),
    ("records of many digits", "x.tar", lambda p: tar(p, extended(record(b"comment", b"1" * 900_000)), MEMBER)),
    ("records within records", "x.tar", lambda p: tar(p, extended(b"2 " * 400_000 + b"="), MEMBER)),
    ("records that hold for all", "x.tar", lambda p: tar(p, extended(b"".join(record(b"k%d" % n, b"v") for n in range(50_000)), b"g"), MEMBER * 1000)),
    ("more and more records that hold for all", "x.tar", lambda p: tar(p, *[extended(record(b"k%d" % n, b"v" * 9000), b"g") for n in range(2000)], MEMBER)),
    ("size of less than nothing", "x.tar", lambda p: tar(p, MEMBER, header(b"b.png", -1536))),
    ("size of less than nothing in a record", "x.tar", lambda p: tar(p, MEMBER, extended(record(b"size", b"-3072")), MEMBER)),
    ("map of holes", "x.tar", lambda p: tar(p, sparse(), MEMBER)),
    ("map of holes in a record", "x.tar", lambda p: tar(p, extended(HOLES), header(b"a.png", 1024) + b"9" * 1024, MEMBER)),
    ("map of holes that is no number", "x.tar", lambda p: tar(p, extended(record(b"GNU.sparse.size", b"abc")), MEMBER)),
    ("member of a terabyte", "x.tar.gz", lambda p: zipped(p, header(b"a.npy", 8**11 - 1), bytes(1024))),
    ("text of 20 MB", "x.tar.gz", lambda p: zipped(p, MEMBER, header(b"a.json", 20 * MILLION), padded(b"[" * (20 * MILLION)), END)),
]  # fmt: skip
# those that take seconds
LARGE_BOMBS = [
    ("zeros in a page", "x.parquet", lambda p: parquet(p, few(2, image=pa.array([bytes(600 * MILLION), b""])), use_dictionary=False)),
    ("zeros that are compressed", "x.arrow", lambda p: arrow(p, few(2, image=pa.array([bytes(600 * MILLION), b""])), compression="zstd")),
    ("zeros that are compressed in a stream", "x.arrow", lambda p: arrow(p, few(2, image=pa.array([bytes(600 * MILLION), b""])), pa.ipc.new_stream, compression="zstd")),
    ("long name", "x.tar.gz", lambda p: zipped(p, header(b"x", GIGABYTE, b"L"), GIGABYTE, MEMBER, END)),
    ("records without end", "x.tar.gz", lambda p: zipped(p, header(b"x", GIGABYTE, b"x"), GIGABYTE, MEMBER, END)),
    ("zeros", "x.tar.gz", lambda p: zipped(p, header(b"a.png", GIGABYTE), GIGABYTE, MEMBER, END)),
    ("zeros behind the end", "x.tar.gz", lambda p: zipped(p, MEMBER, END, GIGABYTE)),
]  # fmt: skip
