import numpy as np
import pytest

from helpers.pictures_on_disk import groups_of
from moe_core.data.duplicates import PLAIN, SIGNATURE_BYTES, codes, is_plain, same_picture, signature


def pictures(count, size=32, seed=0):
    """Blocks of random colors, 8x8 in a picture."""
    blocks = np.random.default_rng(seed).integers(20, 200, (count, 8, 8, 3), np.uint8)
    return blocks.repeat(size // 8, 1).repeat(size // 8, 2)


def grouped(images, levels=8.0):
    return groups_of(signature(images), levels).tolist()


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
    assert groups_of(none).tolist() == []


def test_one_picture_is_a_group():
    assert grouped(pictures(1)) == [0]


def test_equal_pictures_are_one_group_by_the_first():
    one, other = pictures(2)
    assert grouped(np.stack([one, other, one, one, other])) == [0, 1, 0, 0, 1]


def test_ten_thousand_equal_pictures_are_one_group():
    signatures = signature(pictures(1)).repeat(10_000, 0)
    assert set(groups_of(signatures).tolist()) == {0}


def test_ten_thousand_pictures_of_one_code_and_many_colors_are_told_apart():
    signatures = signature(pictures(1)).repeat(10_000, 0)
    colors = np.random.default_rng(0).integers(0, 4, 10_000)
    signatures[:, 64:] = 40 + 40 * colors[:, None]
    signatures[:, 0] += np.random.default_rng(1).integers(0, 5, 10_000).astype(np.uint8)  # and none quite equal
    assert len(np.unique(codes(signatures), axis=0)) < 5
    assert len(set(groups_of(signatures).tolist())) == 4


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
    found = groups_of(np.concatenate([signature(images), signature(copy[None])]))
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
    assert groups_of(chain.astype(np.uint8)).tolist() == [0, 0, 0]


def test_the_same_picture_both_ways_round():
    one = np.random.default_rng(0).integers(0, 256, (200, SIGNATURE_BYTES), np.uint8)
    other = (one + np.random.default_rng(1).integers(-9, 10, one.shape)).clip(0, 255).astype(np.uint8)
    assert np.array_equal(same_picture(one, other, 8.0), same_picture(other, one, 8.0))
