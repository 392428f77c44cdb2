"""Near-duplicates among a million drawn signatures: time, memory, and the search against comparing all with all.

Both searches answer the same queries in the same run on the same threads; compared are codes a second, and the recall
of the fast one against the slow one must be 1. Example: python benchmarks/duplicates.py --posts 1000000
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from moe_core.clustering.neighbors import near_pairs, pairs_by_scan
from moe_core.data.duplicates import CELLS, RADIUS, SIGNATURE_BYTES, codes
from moe_core.data.groups import Signatures
from moe_core.sorting import MEMORY, RowFile

COPIES, ALIKE, WHITE = 0.03, 0.01, 0.05  # shares of posts: a copy of another; of one of ten pictures; small on white
LEVELS = 8.0


def drawn(posts: int, seed: int = 0) -> np.ndarray:
    """(N, SIGNATURE_BYTES) uint8: smooth pictures whose frequencies fall off as those of photographs do."""
    draw = np.random.default_rng(seed)
    k = np.arange(CELLS)
    cosine = np.cos(np.pi * (k + 0.5) * k[:, None] / CELLS).astype(np.float32)
    falling = (90 / (1 + k[:, None] ** 2 + k**2) ** 0.75).astype(np.float32)
    out = np.empty((posts, SIGNATURE_BYTES), np.uint8)
    for first in range(0, posts, 50_000):
        rows = out[first : first + 50_000]
        waves = draw.standard_normal((len(rows), CELLS, CELLS), np.float32) * falling
        light = 120 + cosine.T @ waves @ cosine
        white = draw.random(len(rows)) < WHITE
        light[white, :2] = light[white, -2:] = light[white, :, :2] = light[white, :, -2:] = 255
        rows[:, : CELLS**2] = light.clip(0, 255).reshape(len(rows), -1)
        tint = draw.normal(128, 12, (len(rows), 2, 1)) + draw.normal(0, 6, (len(rows), 2, 16))
        rows[:, CELLS**2 :] = tint.clip(0, 255).reshape(len(rows), -1)
    for share, originals in ((COPIES, posts), (ALIKE, 10)):
        copies = draw.choice(posts, int(posts * share), replace=False)
        changed = out[draw.integers(0, originals, len(copies))] + draw.normal(0, 1.0, (len(copies), SIGNATURE_BYTES))
        out[copies] = np.rint(changed).clip(0, 255)
    return out


def groups_of(signatures: np.ndarray) -> np.ndarray:
    """(N,) first of the group of each, as `splits` finds them."""
    with tempfile.TemporaryDirectory() as folder:
        found = Signatures(Path(folder), len(signatures), MEMORY)
        found.add(signatures, np.zeros(len(signatures), bool))
        pictures = found.pictures()
        pictures.group(LEVELS, near_pairs)
        return pictures.first_of(pictures.number_N)


def crowd(posts: int) -> None:
    """One luma and many colors: the code is of luma alone."""
    signatures = drawn(1).repeat(posts, 0)
    signatures[:, CELLS**2 :] = np.random.default_rng(0).integers(20, 236, (posts, SIGNATURE_BYTES - CELLS**2))
    worked = time.process_time()
    groups = len(set(groups_of(signatures).tolist()))
    print(f"{posts:,} pictures of one code, {groups:,} groups: {time.process_time() - worked:.1f} s of processor time")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--posts", type=int, default=1_000_000)
    options.add_argument("--queries", type=int, default=2_000, help="of the comparison with all against all")
    options.add_argument("--crowd", type=int, default=0, help="only: so many different pictures that share one code")
    args = options.parse_args()
    if args.crowd:
        return crowd(args.crowd)
    signatures = drawn(args.posts)
    before = _peak()
    began, worked = time.monotonic(), time.process_time()
    found = groups_of(signatures)
    seconds = time.monotonic() - began
    _, sizes = np.unique(found, return_counts=True)
    worked = time.process_time() - worked
    print(f"group: {args.posts:,} signatures in {seconds:.1f} s and {worked:.1f} s of processor time")
    print(f"memory: {_peak():.2f} GiB at the peak, {before:.2f} GiB of it before")
    print(
        f"groups of several: {(sizes > 1).sum():,} with {sizes[sizes > 1].sum():,} posts, the largest {sizes.max():,}"
    )
    code = np.unique(codes(signatures), axis=0)
    with tempfile.TemporaryDirectory() as folder:
        file = RowFile(Path(folder) / "codes", code.shape[1])
        file.append(code)
        began = time.monotonic()
        pairs = list(near_pairs(file, RADIUS, Path(folder), MEMORY))
        seconds = time.monotonic() - began
    fast = len(code) / seconds
    i_P, j_P = (np.concatenate(part) for part in zip(*pairs, strict=True))
    began = time.monotonic()
    query, row = pairs_by_scan(code[: args.queries], code, RADIUS)
    slow = args.queries / (time.monotonic() - began)
    known = {(a, b) for a, b in zip(query.tolist(), row.tolist(), strict=True) if a < b}
    some = i_P < args.queries
    got = set(zip(i_P[some].tolist(), j_P[some].tolist(), strict=True))
    print(f"search: {len(i_P):,} pairs of near codes among {len(code):,} in {seconds:.1f} s, {fast:,.0f} codes/s")
    print(f"by scan {slow:,.0f} codes/s")
    recall = len(known & got) / max(1, len(known))
    print(f"ratio {fast / slow:.1f}; recall against the scan {recall:.4f} of {len(known):,} pairs")
    if known != got:
        raise SystemExit("the two searches differ")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
