"""Rows a fragment of posts.lance: taking 1,024 random rows and scanning everything, at several sizes.

    python benchmarks/fragment_size.py [--rows 131072]

Raw: pixels of 32x32 (3,072 bytes). JPEG: files of 64x64, quality 90. Prints rows a second; a ratio is against the
largest fragment of the same kind. Page cache warm, so it shows Lance's own cost and not the disk's.
"""

import argparse
import io
import shutil
import tempfile
import time
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import write_fragments
from PIL import Image

SIZES = (1_024, 4_096, 16_384, 65_536, 131_072)
TAKES = 20
SCHEMA = pa.schema([("shard", pa.string()), ("position", pa.int64()), ("id", pa.string()), ("image", pa.binary())])


def raw(rng: np.random.Generator) -> bytes:
    return rng.integers(0, 256, 3072, dtype=np.uint8).tobytes()


def jpeg(rng: np.random.Generator) -> bytes:
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize((64, 64), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def write(path: Path, images: list[bytes], rows: int, size: int) -> None:
    lance.write_dataset(SCHEMA.empty_table(), str(path), mode="create", data_storage_version="stable")
    columns = {"shard": ["s"] * rows, "position": range(rows), "id": [f"p{n}" for n in range(rows)]}
    columns["image"] = [images[n % len(images)] for n in range(rows)]
    table = pa.table({name: pa.array(list(values)) for name, values in columns.items()}, schema=SCHEMA)
    new = write_fragments(table, str(path), schema=SCHEMA, max_rows_per_file=size)
    lance.LanceDataset.commit(str(path), lance.LanceOperation.Append(new), read_version=1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=131_072)
    rows = parser.parse_args().rows
    rng = np.random.default_rng(0)
    folder = Path(tempfile.mkdtemp())
    for kind, draw in (("raw", raw), ("jpeg", jpeg)):
        images = [draw(rng) for _ in range(4096)]
        found = []
        for size in SIZES:
            path = folder / f"{kind}{size}.lance"
            write(path, images, rows, size)
            data = lance.dataset(str(path))
            data.take(np.sort(rng.choice(rows, 1024, replace=False)), columns=["image"])
            started = time.perf_counter()
            for _ in range(TAKES):
                data.take(np.sort(rng.choice(rows, 1024, replace=False)), columns=["image"])
            take = TAKES * 1024 / (time.perf_counter() - started)
            started = time.perf_counter()
            for _ in data.to_batches(columns=["image"]):
                pass
            scan = rows / (time.perf_counter() - started)
            started = time.perf_counter()
            for _ in data.to_batches(columns=["position"]):
                pass
            narrow = rows / (time.perf_counter() - started)
            found.append((size, take, scan, narrow))
            shutil.rmtree(path)
        for size, take, scan, narrow in found:
            ratios = "  ".join(f"{x / y:.2f}" for x, y in zip((take, scan, narrow), found[-1][1:], strict=True))
            print(f"{kind:5} {size:7,} rows a fragment: take {take:9,.0f}  scan {scan:11,.0f}  ", end="")
            print(f"position alone {narrow:12,.0f} rows/s   ratios {ratios}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
