"""Near-duplicates found by files are those that comparing all with all finds, and hold little."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers import pictures_on_disk
from helpers.pictures_in_memory import groups_by_scan, numbers_of
from helpers.pictures_on_disk import LEVELS, grouped, pictures_of
from moe_core.clustering.neighbors import near_pairs, pairs_by_scan
from moe_core.data import duplicates
from moe_core.data.duplicates import RADIUS, SIGNATURE_BYTES, codes, is_plain
from moe_core.sorting import RowFile

SMALLEST = 1  # byte of memory: parts of 1,024 rows


def pairs_on_disk(folder, code, radius, memory):
    file = RowFile(folder / "codes", code.shape[1])
    file.append(code)
    found = near_pairs(file, radius, folder, memory)
    pairs = [pair for i, j in found for pair in zip(i.tolist(), j.tolist(), strict=True)]
    assert [path.name for path in folder.iterdir()] == ["codes"]
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
        list(near_pairs(file, 128, tmp_path, SMALLEST))
    with pytest.raises(ValueError, match="codes of 8 bytes: wanted 16"):
        list(near_pairs(RowFile(tmp_path / "other", 8), 9, tmp_path, SMALLEST))


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
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("draw", "count"), [(drawn, 3000), (crowded, 1500)])
def test_the_groups_are_those_of_all_pairs(tmp_path, memory, seed, draw, count):
    look = draw(count, seed)
    ignored = np.random.default_rng(seed).random(count) < 0.1 * (seed % 2)
    used = np.flatnonzero(~ignored)
    wanted = np.full(count, -1)
    wanted[used] = used[groups_by_scan(look[used], LEVELS)]
    found, number = grouped(tmp_path, look, ignored, memory)
    assert np.array_equal(found, wanted)
    assert 1 < len(set(wanted.tolist())) < count
    equal = numbers_of(look).tolist()
    assert len(set(zip(equal, number.tolist(), strict=True))) == len(set(equal)) == len(set(number.tolist()))


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
def test_in_a_crowd_none_is_joined_that_all_pairs_do_not_join_and_memory_changes_nothing(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(duplicates, "AT_MOST", 8)
    monkeypatch.setattr(duplicates, "NEAREST", 8)
    look = crowded(1500, seed)
    found = []
    for memory, parts in ((SMALLEST, 7), (1 << 26, 1)):
        folder = tmp_path / str(parts)
        folder.mkdir()
        found.append(grouped(folder, look, memory=memory, parts=parts)[0])
    assert np.array_equal(*found)
    wanted = groups_by_scan(look, LEVELS)
    assert np.array_equal(wanted[found[0]], wanted)
    equal = numbers_of(look)
    assert all(len(set(found[0][equal == number].tolist())) == 1 for number in set(equal.tolist()))


def of_one_code(count, seed=0):
    """Different pictures: their colors say which."""
    look = drawn(40, 1)[:1].repeat(count, 0)
    look[:, 64:] = np.random.default_rng(seed).integers(20, 236, (count, 32))
    return look


@pytest.mark.parametrize("count", [1000, 4000])
@pytest.mark.parametrize(("draw", "fewest"), [(of_one_code, 19), (lambda count: crowded(count, 0), 10)])
def test_pairs_grow_with_the_pictures_and_not_with_their_square(tmp_path, monkeypatch, draw, fewest, count):
    monkeypatch.setattr(duplicates, "AT_MOST", 8)
    monkeypatch.setattr(duplicates, "NEAREST", 4)
    pairs = sum(len(one) for one, _ in pictures_of(tmp_path, draw(count)).candidates(near_pairs))
    # with the first, 8 more of the code, 8 of near codes, and 4 in each of 3 directions
    assert fewest * count < pairs <= (1 + 8 + 8 + 12) * count


def test_in_a_crowd_equal_pictures_are_always_found_and_copies_mostly(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "AT_MOST", 16)
    look = of_one_code(3000)
    copies = look[:300].astype(int)
    copies[:, 64:] += np.random.default_rng(1).integers(-2, 3, (300, 32))
    found, _ = grouped(tmp_path, np.concatenate([look, copies.astype(np.uint8), look[:300]]))
    assert found[:3000].tolist() == list(range(3000))
    assert found[3300:].tolist() == list(range(300))
    assert (found[3000:3300] == np.arange(300)).mean() > 0.9


def test_all_pairs_of_near_codes_are_compared_where_they_are_few(tmp_path):
    look = np.unique(crowded(200, 0), axis=0)
    code = codes(look)
    assert not is_plain(code).any()
    look, code = (rows[np.lexsort(code.T[::-1])] for rows in (look, code))  # as places are
    pairs = pictures_of(tmp_path, look).candidates(near_pairs)
    found = {tuple(sorted(pair)) for one, other in pairs for pair in zip(one.tolist(), other.tolist(), strict=True)}
    assert found == set(all_pairs(code, RADIUS))


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
