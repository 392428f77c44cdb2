import numpy as np
import pytest

from moe_core.clustering.neighbors import near_pairs, pairs_by_scan
from moe_core.data import duplicates
from moe_core.data.duplicates import (
    PLAIN,
    SIGNATURE_BYTES,
    codes,
    group,
    is_plain,
    number_of_each,
    same_picture,
    signature,
)


def pictures(count, size=32, seed=0):
    """Blocks of random colors, 8x8 in a picture."""
    blocks = np.random.default_rng(seed).integers(20, 200, (count, 8, 8, 3), np.uint8)
    return blocks.repeat(size // 8, 1).repeat(size // 8, 2)


def grouped(images, levels=8.0):
    return group(signature(images), levels, near_pairs).tolist()


@pytest.mark.parametrize("size", [8, 9, 12, 32, 224])
def test_a_picture_of_one_color_has_one_luma_and_no_structure(size):
    # luma 0.299 x 200 + 0.587 x 100 + 0.114 x 50 = 124.2; Cb 128 + 0.564 (50 - 124.2) = 86.2
    # and Cr 128 + 0.713 (200 - 124.2) = 182.0
    (found,) = signature(np.full((1, size, size, 3), (200, 100, 50), np.uint8))
    assert found.tolist() == [124] * 64 + [86] * 16 + [182] * 16


def test_cells_lie_row_by_row():
    image = np.zeros((1, 16, 16, 3), np.uint8)
    image[0, :2, 2:4] = 255  # first row, second cell
    assert np.flatnonzero(signature(image)[0, :64]).tolist() == [1]


@pytest.mark.parametrize("size", [24, 30, 64])
def test_a_batch_and_its_pictures_give_the_same_bytes(size):
    images = np.random.default_rng(size).integers(0, 256, (5, size, size, 3), np.uint8)
    assert np.array_equal(signature(images), np.concatenate([signature(image[None]) for image in images]))


def test_no_pictures():
    none = signature(np.zeros((0, 16, 16, 3), np.uint8))
    assert none.shape == (0, SIGNATURE_BYTES)
    assert group(none, 8.0, near_pairs).tolist() == []


def test_one_picture_is_a_group():
    assert grouped(pictures(1)) == [0]


def test_equal_pictures_are_one_group_by_the_first():
    one, other = pictures(2)
    assert grouped(np.stack([one, other, one, one, other])) == [0, 1, 0, 0, 1]


def test_ten_thousand_equal_pictures_are_one_group():
    signatures = signature(pictures(1)).repeat(10_000, 0)
    assert set(group(signatures, 8.0, near_pairs).tolist()) == {0}


def test_ten_thousand_pictures_of_one_code_and_many_colors_are_told_apart():
    signatures = signature(pictures(1)).repeat(10_000, 0)
    colors = np.random.default_rng(0).integers(0, 4, 10_000)
    signatures[:, 64:] = 40 + 40 * colors[:, None]
    signatures[:, 0] += np.random.default_rng(1).integers(0, 5, 10_000).astype(np.uint8)  # and none quite equal
    assert len(np.unique(codes(signatures), axis=0)) < 5
    assert len(set(group(signatures, 8.0, near_pairs).tolist())) == 4


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("brighter", lambda x: x * 1.1),
        ("darker", lambda x: x * 0.9),
        ("noise", lambda x: x + np.random.default_rng(3).normal(0, 4, x.shape)),
        ("smaller", lambda x: x[::2, ::2]),
    ],
)
def test_a_copy_is_found(name, change):
    images = pictures(20)
    copy = change(images[7].astype(float)).clip(0, 255).astype(np.uint8)
    found = group(np.concatenate([signature(images), signature(copy[None])]), 8.0, near_pairs)
    assert found.tolist() == [*range(20), 7], name


def test_another_color_is_another_picture():
    image = pictures(1)[0]
    assert grouped(np.stack([image, image[..., ::-1]])) == [0, 1]


def test_a_small_thing_elsewhere_is_another_picture():
    paper = np.full((2, 64, 64, 3), 255, np.uint8)
    paper[:, 16:48, 16:48] = (250, 200, 40)
    paper[0, 24:30, 24:40] = 0
    paper[1, 34:40, 24:40] = 0
    assert grouped(paper) == [0, 1]


def test_plain_pictures_are_copies_only_when_equal():
    grays = np.stack([np.full((16, 16, 3), level, np.uint8) for level in (100, 101, 100)])
    assert is_plain(codes(signature(grays))).all()
    assert grouped(grays) == [0, 1, 0]
    assert not is_plain(codes(signature(pictures(1)))).any()
    assert PLAIN == 8


def test_copies_of_copies_are_one_group():
    first = signature(pictures(1)).astype(int)
    chain = np.concatenate([first, first + 7, first + 14])
    chain[:, 64:] = first[:, 64:]
    chain[1, 64] += 7  # by 7, 7 and 14 levels: the ends are joined by the middle
    chain[2, 64] += 14
    assert not same_picture(chain[:1].astype(np.uint8), chain[2:].astype(np.uint8), 8.0)[0]
    assert group(chain.astype(np.uint8), 8.0, near_pairs).tolist() == [0, 0, 0]


def test_the_same_picture_both_ways_round():
    one = np.random.default_rng(0).integers(0, 256, (200, SIGNATURE_BYTES), np.uint8)
    other = (one + np.random.default_rng(1).integers(-9, 10, one.shape)).clip(0, 255).astype(np.uint8)
    assert np.array_equal(same_picture(one, other, 8.0), same_picture(other, one, 8.0))


def test_numbers_are_equal_for_equal_rows():
    rows = np.array([[1, 2], [3, 4], [1, 2]], np.uint8)
    number = number_of_each(rows)
    assert number[0] == number[2] != number[1]


@pytest.mark.parametrize("radius", [0, 1, 2, 7, 9, 11])
def test_the_search_finds_what_a_scan_of_all_finds(radius):
    draw = np.random.default_rng(radius)
    code = draw.integers(0, 256, (300, 16), np.uint8)
    flips = draw.random((300, 128)) < draw.uniform(0, 0.15, (300, 1))
    code = np.unique(np.concatenate([code, code ^ np.packbits(flips, axis=1)]), axis=0)
    query, row = pairs_by_scan(code, code, radius)
    wanted = {(i, j) for i, j in zip(query.tolist(), row.tolist(), strict=True) if i < j}
    found = [p for i, j in near_pairs(code, radius) for p in zip(i.tolist(), j.tolist(), strict=True)]
    assert len(found) == len(set(found))
    assert set(found) == wanted
    assert bool(wanted) == (radius > 0)


def test_the_search_of_few_codes():
    assert list(near_pairs(np.zeros((0, 16), np.uint8), 9)) == []
    assert [len(i) for i, _ in near_pairs(np.zeros((1, 16), np.uint8), 9)] == [0]


@pytest.mark.parametrize("radius", [-1, 128])
def test_a_radius_that_cannot_be(radius):
    with pytest.raises(ValueError, match="of codes of 128 bits: wanted 0 to 63"):
        list(near_pairs(np.zeros((2, 16), np.uint8), radius))


def crowd(count, seed=0):
    """Signatures of one code, all different pictures but for the colors of few: 4 cells of color say which."""
    draw = np.random.default_rng(seed)
    signatures = signature(pictures(1)).repeat(count, 0)
    signatures[:, 64:] = draw.integers(20, 236, (count, 32))
    return signatures


def test_pairs_grow_with_the_pictures_of_one_code_and_not_with_their_square(monkeypatch):
    monkeypatch.setattr(duplicates, "AT_MOST", 8)
    monkeypatch.setattr(duplicates, "NEAREST", 4)

    def compared(count):
        look = crowd(count)
        return sum(len(one) for one, _ in duplicates.candidate_pairs(codes(look), look, near_pairs))

    # with the first, 8 more of the code, and 4 in each of 3 directions
    assert 19 * 1000 < compared(1000) <= 21 * 1000
    assert 19 * 4000 < compared(4000) <= 21 * 4000


def test_pairs_grow_with_the_pictures_of_near_codes_and_not_with_their_square(monkeypatch):
    monkeypatch.setattr(duplicates, "AT_MOST", 8)
    monkeypatch.setattr(duplicates, "NEAREST", 4)
    code = np.packbits(np.arange(128) < 64).repeat(2000).reshape(16, 2000).T.copy()
    code[:, 0] ^= np.arange(2000).astype(np.uint8) % 200  # 200 codes, all within 8 bits, ten rows each
    pairs = [np.stack(p) for p in duplicates.candidate_pairs(code, crowd(2000), near_pairs)]
    assert sum(p.shape[1] for p in pairs) <= (1 + 8 + 8 + 12) * 2000


def test_in_a_crowd_equal_pictures_are_always_found_and_copies_mostly(monkeypatch):
    monkeypatch.setattr(duplicates, "AT_MOST", 16)
    look = crowd(3000)
    copies = look[:300].astype(int)
    copies[:, 64:] += np.random.default_rng(1).integers(-2, 3, (300, 32))
    found = group(np.concatenate([look, copies.astype(np.uint8), look[:300]]), 8.0, near_pairs)
    assert found[:3000].tolist() == list(range(3000))
    assert found[3300:].tolist() == list(range(300))
    assert (found[3000:3300] == np.arange(300)).mean() > 0.9


def test_all_pairs_are_compared_where_they_are_few():
    look = crowd(40)
    code = np.packbits(np.arange(128) < 64)[None].repeat(40, 0)
    code[:, 0] ^= (np.arange(40) % 4).astype(np.uint8)
    pairs = [
        p for one, other in duplicates.candidate_pairs(code, look, near_pairs) for p in zip(one, other, strict=True)
    ]
    assert {tuple(sorted(map(int, p))) for p in pairs} == {(i, j) for i in range(40) for j in range(i + 1, 40)}
