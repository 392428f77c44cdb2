"""Lists the GPU code in a library; writes a copy that keeps the code of one chip.

The payloads of the other chips are zeroed, so the copy compresses to a fraction of the size; nothing moves, so nothing
needs to be linked again. For libraries whose license allows changes.

Example: python benchmarks/gpu/fatbin.py libfaiss.so sm_90 slim.so
"""

import argparse
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

MAGIC = 0xBA55ED50
HEADER, ENTRY = struct.Struct("<IHHQ"), struct.Struct("<HHIQIIHHI")
KINDS = {1: "ptx", 2: "sm"}


def entries(library: bytes | bytearray) -> Iterator[tuple[str, int, int]]:
    """(chip such as `sm_90`, or `ptx_90`; offset of the payload; its bytes) of each entry of each fat binary."""
    at, magic = 0, struct.pack("<I", MAGIC)
    while (at := library.find(magic, at)) >= 0:
        if at + HEADER.size > len(library):
            return
        _, version, header, size = HEADER.unpack_from(library, at)
        start, end = at + header, at + header + size
        if version != 1 or header != HEADER.size or end > len(library):
            at += 4  # the four bytes are there by chance
            continue
        while start + ENTRY.size <= end:
            kind, _, head, length, _, _, _, _, architecture = ENTRY.unpack_from(library, start)
            if kind not in KINDS or head < 32 or start + head + length > end:
                break
            yield f"{KINDS[kind]}_{architecture}", start + head, length
            start += head + length
        at = end


def slim(library: bytes, keep: str) -> bytes:
    """The library with the payloads of all chips but `keep` zeroed."""
    out = bytearray(library)
    for chip, first, length in list(entries(library)):
        if chip != keep:
            out[first : first + length] = bytes(length)
    return bytes(out)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("library", type=Path)
    arguments.add_argument("keep", nargs="?", help="chip whose code is kept, such as sm_90")
    arguments.add_argument("copy", nargs="?", type=Path, help="where the copy is written")
    options = arguments.parse_args()
    if bool(options.keep) != bool(options.copy):
        arguments.error("wanted a chip and a file for the copy, or neither")
    library, sizes = options.library.read_bytes(), Counter[str]()
    for chip, _, length in entries(library):
        sizes[chip] += length
    for chip, size in sorted(sizes.items()):
        print(f"{chip}: {size / 2**20:.1f} MiB")
    if options.copy:
        options.copy.write_bytes(slim(library, options.keep))


if __name__ == "__main__":
    main()
