"""Near-duplicates found by files give what `duplicates.group` gives in memory, and hold little."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers import pictures_on_disk
from helpers.pictures_on_disk import LEVELS, grouped
from moe_core.clustering.near_join import near_pairs_on_disk, pairs_of
from moe_core.clustering.neighbors import near_pairs, pairs_by_scan
from moe_core.data import duplicates, groups
from moe_core.data.duplicates import SIGNATURE_BYTES, codes, group, number_of_each
from moe_core.sorting import RowFile

SMALLEST = 1  # byte of memory: parts of 1,024 rows


def pairs_on_disk(folder, code, radius, memory):
    file = RowFile(folder / "codes", code.shape[1])
    file.append(code)
    found = near_pairs_on_disk(file, radius, folder, memory)
    pairs = [pair for i, j in pairs_of(found) for pair in zip(i.tolist(), j.tolist(), strict=True)]
    assert sorted(path.name for path in folder.iterdir()) == ["codes", "pairs.rows"]
    return pairs


def all_pairs(code, radius):
    query, row = pairs_by_scan(code, code, radius)
    return sorted((i, j) for i, j in zip(query.tolist(), row.tolist(), strict=True) if i < j)


def near_codes(seed, kind):
    """Different codes, of which many differ by few bits; in some kinds most lie in one bucket of a table."""
    draw = np.random.default_rng(seed)
    code = draw.integers(0, 256, (1500, 16)).astype(np.uint8)
    if kind == "one bucket":
        code[:, :10] = code[0, :10]
    if kind == "few bits":
        code &= draw.integers(0, 256, code.shape).astype(np.uint8) & draw.integers(0, 256, code.shape).astype(np.uint8)
    if kind == "ends":  # the least and the greatest values of blocks
        code = np.where(draw.random(code.shape) < 0.5, 0, 255).astype(np.uint8)
    flips = draw.random((len(code), 128)) < draw.uniform(0, 0.1, (len(code), 1))
    return np.unique(np.concatenate([code, code ^ np.packbits(flips, axis=1)]), axis=0)


@pytest.mark.parametrize("kind", ["any", "one bucket", "few bits", "ends"])
@pytest.mark.parametrize(("radius", "seed"), [(0, 0), (1, 1), (2, 2), (7, 3), (9, 4), (9, 5), (9, 6), (11, 7)])
@pytest.mark.parametrize("memory", [SMALLEST, 1 << 22])
def test_the_join_finds_what_a_scan_of_all_finds(tmp_path, kind, radius, seed, memory):
    code = near_codes(seed, kind)
    wanted = all_pairs(code, radius)
    assert pairs_on_disk(tmp_path, code, radius, memory) == wanted
    assert bool(wanted) == (radius > 0)


def test_the_join_of_few_codes(tmp_path):
    for count in (0, 1):
        folder = tmp_path / str(count)
        folder.mkdir()
        assert pairs_on_disk(folder, np.zeros((count, 16), np.uint8), 9, SMALLEST) == []


def test_codes_that_cannot_be_joined(tmp_path):
    file = RowFile(tmp_path / "codes", 16)
    with pytest.raises(ValueError, match="radius 128 of codes of 128 bits: wanted 0 to 63"):
        near_pairs_on_disk(file, 128, tmp_path, SMALLEST)
    with pytest.raises(ValueError, match="codes of 8 bytes: wanted 16"):
        near_pairs_on_disk(RowFile(tmp_path / "other", 8), 9, tmp_path, SMALLEST)


def test_only_some_are_searched_for():
    code = near_codes(4, "few bits")
    some = np.arange(0, len(code), 3)
    found = [p for i, j in near_pairs(code, 9, some) for p in zip(i.tolist(), j.tolist(), strict=True)]
    assert sorted(found) == [pair for pair in all_pairs(code, 9) if pair[0] % 3 == 0]


def drawn(count, seed):
    """Smooth pictures, copies with noise, equal ones, plain ones."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (count, 3, 3)).astype(np.float32)
    weight = np.stack([np.clip(1 - np.abs(np.linspace(0, 2, 8) - k), 0, 1) for k in range(3)])
    luma = np.einsum("nij,ia,jb->nab", coarse, weight, weight).reshape(count, 64)
    look = np.concatenate([luma, draw.normal(128, 20, (count, 32))], axis=1)
    copies = draw.choice(count, count // 4, replace=False)
    look[copies] = look[draw.integers(0, count, len(copies))] + draw.normal(0, 1, (len(copies), SIGNATURE_BYTES))
    look[draw.choice(count, count // 20)] = 100 + draw.integers(0, 2, (count // 20, 1))
    equal = draw.choice(count, count // 10)
    look[equal] = look[draw.integers(0, count, len(equal))]
    return look.clip(0, 255).astype(np.uint8)


def crowded(count, seed):
    """Many colors and a little noise on few pictures: several codes, near each other, with many pictures each."""
    draw = np.random.default_rng(seed)
    look = drawn(40, seed)[draw.integers(0, 4, count)]
    noise = draw.integers(-1, 2, (count, 64)) * (draw.random((count, 64)) < 0.2)
    look[:, :64] = (look[:, :64] + noise).clip(0, 255)
    look[:, 64:] = draw.integers(20, 236, (count, 32))
    copies = draw.choice(count, count // 5, replace=False)
    look[copies] = look[draw.integers(0, count, len(copies))]
    return look


@pytest.mark.parametrize("memory", [SMALLEST, 1 << 26])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("draw", "count", "at_most"), [(drawn, 3000, 1024), (drawn, 3000, 2), (crowded, 1500, 1024), (crowded, 1500, 8)]
)
def test_the_groups_are_those_found_in_memory(tmp_path, monkeypatch, memory, seed, draw, count, at_most):
    monkeypatch.setattr(duplicates, "AT_MOST", at_most)
    monkeypatch.setattr(duplicates, "NEAREST", min(at_most, 64))
    look = draw(count, seed)
    ignored = np.random.default_rng(seed).random(count) < 0.1 * (seed % 2)
    used = np.flatnonzero(~ignored)
    wanted = np.full(count, -1)
    wanted[used] = used[group(look[used], LEVELS, near_pairs)]
    found, number = grouped(tmp_path, look, ignored, memory)
    assert np.array_equal(found, wanted)
    assert np.array_equal(number_of_each(number.astype(">u8").view(np.uint8).reshape(-1, 8)), ranked(look, number))
    assert 1 < len(set(wanted.tolist())) < count


def ranked(look, number):
    """Numbers of equal signatures, in the order of the numbers that they got."""
    wanted = number_of_each(look)
    assert len(set(zip(wanted.tolist(), number.tolist(), strict=True))) == len(set(wanted.tolist()))
    return np.unique(number, return_inverse=True)[1]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_pictures(tmp_path, count):
    look = np.zeros((count, SIGNATURE_BYTES), np.uint8)
    look[1:, 0] = 1
    assert grouped(tmp_path, look, parts=1)[0].tolist() == list(range(count))


def test_a_picture_of_ignored_posts_alone_is_in_no_group(tmp_path):
    look = np.zeros((4, SIGNATURE_BYTES), np.uint8)
    look[:2, :64] = np.arange(64)
    found, number = grouped(tmp_path, look, np.array([True, False, True, True]))
    assert found.tolist() == [-1, 1, -1, -1]
    assert number[0] == number[1] != number[2] == number[3]


def test_one_picture_a_hundred_thousand_times(tmp_path):
    look = drawn(4, 0)[:1].repeat(100_000, 0)
    assert set(grouped(tmp_path, look, memory=1 << 22)[0].tolist()) == {0}


@pytest.mark.parametrize("seed", range(4))
def test_where_codes_are_too_many_for_faiss_crowds_alone_may_be_others(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(groups, "SEARCHED_IN_MEMORY", 0)
    (tmp_path / "drawn").mkdir()
    (tmp_path / "crowded").mkdir()
    look = drawn(3000, seed)
    assert np.array_equal(grouped(tmp_path / "drawn", look)[0], group(look, LEVELS, near_pairs))
    monkeypatch.setattr(duplicates, "AT_MOST", 8)
    look = crowded(1500, seed)
    found = grouped(tmp_path / "crowded", look)[0]
    monkeypatch.setattr(duplicates, "AT_MOST", 10_000)
    everything = group(look, LEVELS, near_pairs)
    assert np.array_equal(everything[found], everything)  # none joined that comparing all does not join
    equal = number_of_each(look)
    assert all(len(set(found[equal == number].tolist())) == 1 for number in set(equal.tolist()))


def test_memory_does_not_grow_with_the_pictures(tmp_path):
    """Four times the pictures, of 96 bytes each, and of 1,300 in FAISS: numbers alone may grow."""
    peaks = []
    for count in (40_000, 160_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        command = [sys.executable, pictures_on_disk.__file__, str(folder), str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
        pictures, peak = map(int, done.stdout.split())
        assert pictures == count * 0.99 + 1
        peaks.append(peak * 1024)
    assert peaks[1] - peaks[0] < 120_000 * 60


def test_the_codes_of_drawn_pictures_are_near_in_crowds():
    """What the tests above rest on."""
    code = np.unique(codes(crowded(1500, 0)), axis=0)
    assert len(code) > 4
    assert len(all_pairs(code, 9)) > len(code)
