"""Rows a fragment of posts.lance: taking 1,024 random rows and scanning everything, at several sizes.

    python benchmarks/fragment_size.py [--rows 131072]

Raw: pixels of 32x32 (3,072 bytes). JPEG: files of 64x64, quality 90. Prints rows a second of processor time, the best
of five rounds in which the sizes take turns, page cache warm: Lance's own cost, not the disk's, and little moved by
what else the machine does. A ratio is against the largest fragment of the same kind.
"""

import argparse
import io
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import write_fragments
from PIL import Image

SIZES = (1_024, 4_096, 16_384, 65_536, 131_072)
TAKES, ROUNDS = 10, 5
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


def rate(rows: int, work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return rows / (time.process_time() - started)


def taken(data: lance.LanceDataset, picks: list[np.ndarray]) -> None:
    for rows in picks:
        data.take(rows, columns=["image"])


def scanned(data: lance.LanceDataset, column: str) -> int:
    return sum(len(batch) for batch in data.to_batches(columns=[column]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=131_072)
    rows = parser.parse_args().rows
    rng = np.random.default_rng(0)
    for kind, draw in (("raw", raw), ("jpeg", jpeg)):
        folder = Path(tempfile.mkdtemp())
        images = [draw(rng) for _ in range(4096)]
        best = {size: [0.0, 0.0, 0.0] for size in SIZES}
        for size in SIZES:
            write(folder / f"{kind}{size}.lance", images, rows, size)
        for _ in range(ROUNDS):
            for size in SIZES:
                data = lance.dataset(str(folder / f"{kind}{size}.lance"))
                data.take([0, rows - 1], columns=["image"])
                picks = [np.sort(rng.choice(rows, 1024, replace=False)) for _ in range(TAKES)]
                now = (
                    rate(TAKES * 1024, partial(taken, data, picks)),
                    rate(rows, partial(scanned, data, "image")),
                    rate(rows, partial(scanned, data, "position")),
                )
                best[size] = [max(old, new) for old, new in zip(best[size], now, strict=True)]
        shutil.rmtree(folder)
        for size, (take, scan, narrow) in best.items():
            ratios = "  ".join(f"{x / y:.2f}" for x, y in zip(best[size], best[SIZES[-1]], strict=True))
            print(f"{kind:5} {size:7,} rows a fragment: take {take:9,.0f}  scan {scan:11,.0f}  ", end="")
            print(f"position alone {narrow:12,.0f} rows/s   ratios {ratios}")


if __name__ == "__main__":
    main()
