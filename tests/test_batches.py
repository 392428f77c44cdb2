"""Posts, the order in which a training sees them, and their batches."""

import numpy as np
import pytest
import torch

from helpers.random_posts import random_posts
from moe_core.settings import Training
from moe_core.training.batches import ahead, batches
from moe_core.training.loop import steps_of
from moe_core.training.moves import Moves, moved
from moe_core.training.order import moves_of, resampled, rows_of_steps, shuffled
from moe_core.training.posts import ImagesInMemory, ImagesOnDevice, Posts, bytes_for_posts
from moe_core.training.transfer import one_behind

NOTHING = ImagesInMemory(np.zeros((3, 1, 1, 3), np.uint8))


def test_tags_are_filled_up_to_as_many_as_any_post_has():
    posts = Posts(NOTHING, torch.tensor([0, 2, 1]), torch.tensor([0, 2, 2, 3]))
    assert posts.tags_of(np.array([2, 0, 1])).tolist() == [[1, -1], [0, 2], [-1, -1]]


def test_rows_and_tags_must_agree():
    with pytest.raises(ValueError, match="one start more than images"):
        Posts(NOTHING, torch.tensor([0]), torch.tensor([0, 1]))


def test_a_subset_keeps_its_tags_and_their_order():
    posts = Posts(NOTHING, torch.tensor([0, 2, 1]), torch.tensor([0, 2, 2, 3])).subset(np.array([2, 0]))
    assert posts.tags_T.tolist() == [1, 0, 2]
    assert posts.starts_N1.tolist() == [0, 1, 3]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 1000])
def test_a_shuffle_is_a_permutation_that_depends_on_seed_and_epoch(count):
    order = shuffled(np.arange(count), count, 0, 0)
    assert sorted(order.tolist()) == list(range(count))
    assert count < 1000 or order.tolist() != shuffled(np.arange(count), count, 1, 0).tolist()
    assert count < 1000 or order.tolist() != shuffled(np.arange(count), count, 0, 1).tolist()


def test_a_shuffle_is_told_place_by_place():
    order = shuffled(np.arange(100), 100, 3, 4)
    assert [int(shuffled(np.array([place]), 100, 3, 4)[0]) for place in range(100)] == order.tolist()


def test_a_shuffle_looks_random():
    # where the first of 8 goes, over 4,000 epochs: 500 expected each, standard deviation 21
    places = [int(shuffled(np.array([0]), 8, 0, epoch)[0]) for epoch in range(4000)]
    assert all(400 < count < 600 for count in np.bincount(places, minlength=8))
    # and neighbors do not stay neighbors: a step of one has the chance 2 / N
    order = shuffled(np.arange(10_000), 10_000, 0, 0)
    assert (np.abs(np.diff(order)) == 1).sum() < 10


def test_one_pass_sees_every_post_once_and_the_next_in_another_order():
    first = np.concatenate([rows_of_steps(10, 5, 0, range(s, s + 1))[0] for s in (0, 1)])
    second = np.concatenate([rows_of_steps(10, 5, 0, range(s, s + 1))[0] for s in (2, 3)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()


def test_order_depends_on_the_step_alone():
    late = rows_of_steps(10, 5, 7, range(3, 4))
    assert late.tolist() == rows_of_steps(10, 5, 7, range(8))[3:4].tolist()
    assert late[:, 2:4].tolist() == rows_of_steps(10, 5, 7, range(3, 4), slice(2, 4)).tolist()


def all_of(training, **more):
    posts = random_posts()
    return [(b.step, b.images_BCHW, b.tags_BM) for b in batches(posts, training, 0, 20, **more)]


def same(one, two):
    return len(one) == len(two) and all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2]) for a, b in zip(one, two, strict=True)
    )


def test_batches_are_the_same_for_any_number_of_threads():
    training = Training(batch_size=8)
    assert same(all_of(training, threads=1), all_of(training, threads=5))


def test_batches_from_the_middle_are_those_of_the_whole():
    training = Training(batch_size=8)
    late = [(b.step, b.images_BCHW, b.tags_BM) for b in batches(random_posts(), training, 7, 20)]
    assert same(late, all_of(training)[7:])


def test_ranks_see_parts_that_are_disjoint_and_together_all():
    training = Training(batch_size=8, flip=False, crop=0)
    images = np.arange(64, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    posts = Posts(ImagesInMemory(images), torch.zeros(64, dtype=torch.int64), torch.arange(65))
    seen = [
        {int(n) for b in batches(posts, training, 0, 4, rank=rank, ranks=2) for n in b.images_BCHW[:, 0, 0, 0]}
        for rank in (0, 1)
    ]
    assert len(seen[0]) == len(seen[1]) == 32
    assert seen[0] | seen[1] == set(range(64))


def test_batches_of_posts_on_a_device_are_the_same():
    for more in ({}, {"flip": False}, {"crop": 0}, {"flip": False, "crop": 0}, {"resample": "sqrt"}):
        training = Training(batch_size=8, **more)
        there = random_posts().on_device(64 * 8 * 8 * 3, "cpu")
        assert isinstance(there.images, ImagesOnDevice)
        for rank in (0, 1):
            made = [(b.step, b.images_BCHW, b.tags_BM) for b in batches(there, training, 0, 20, rank=rank, ranks=2)]
            assert same(made, all_of(training, rank=rank, ranks=2)), more


def test_no_steps_are_no_batches():
    for posts in (random_posts(), random_posts().on_device(1 << 20, "cpu")):
        assert list(batches(posts, Training(batch_size=8), 3, 3)) == []


def test_posts_that_do_not_fit_on_the_device_stay_where_they_are():
    posts = random_posts()
    assert posts.on_device(64 * 8 * 8 * 3 - 1, "cpu") is posts


def test_half_of_what_is_free_on_a_device_is_for_the_posts(monkeypatch):
    posts = random_posts()
    for free, fits in ((2 * 64 * 8 * 8 * 3, True), (2 * 64 * 8 * 8 * 3 - 1, False)):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda device, free=free: (free, 1 << 40))
        assert (posts.on_device(bytes_for_posts("auto", "cuda"), "cpu") is posts) != fits
    assert bytes_for_posts(3, "cuda:1") == 3 << 20
    assert bytes_for_posts("auto", "cpu") == 0


def test_where_another_process_takes_the_memory_the_posts_stay_where_they_are(monkeypatch):
    def taken(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    posts = random_posts()
    with monkeypatch.context() as before:
        before.setattr("torch.empty", taken)
        assert posts.on_device(1 << 30, "cpu") is posts
    monkeypatch.setattr("torch.Tensor.copy_", taken)  # while the first of them are there
    assert posts.on_device(1 << 30, "cpu") is posts


def test_images_on_a_device_are_images():
    posts = random_posts()
    images = posts.on_device(1 << 20, "cpu").images
    assert np.array_equal(images.subset(np.array([5, 2])).read(np.array([1])), posts.images.read(np.array([2])))
    assert len(images) == 64


def skewed(counts):
    """Posts with one tag each, so many of each tag."""
    tags = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Posts(ImagesInMemory(np.zeros((len(tags), 1, 1, 3), np.uint8)), tags, torch.arange(len(tags) + 1))


@pytest.mark.parametrize(("how", "wanted"), [("off", None), ("sqrt", [100, 50, 40]), ("linear", [100, 100, 100])])
def test_posts_with_rare_tags_are_seen_more_often(how, wanted):
    # of 100, 25 and 16 posts a tag, where 100 are not rare: 1, 2 and 2.5 times; or 1, 4 and 6.25 times
    posts = skewed([100, 25, 16])
    order = resampled(posts, Training(resample=how, resample_below=100))
    if wanted is None:
        assert order is None
    else:
        seen = np.bincount(posts.tags_T.numpy()[order]).tolist()
        assert seen[:2] == wanted[:2]
        assert abs(seen[2] - wanted[2]) <= 8  # the fractions are drawn: 16 x 1/2 and 16 x 1/4


def test_a_post_counts_by_its_rarest_tag_and_the_steps_stay():
    posts = Posts(NOTHING, torch.tensor([0, 0, 1, 0]), torch.tensor([0, 1, 3, 4]))  # tag 0 thrice, tag 1 once
    training = Training(resample="linear", resample_below=3, epochs=2, batch_size=1, flip=False, crop=0)
    assert resampled(posts, training).tolist() == [0, 1, 1, 1, 2]
    assert steps_of(len(posts), training) == 6
    seen = sum(int((b.tags_BM == 1).sum()) for b in batches(posts, training, 0, 5))
    assert seen == 3  # of one pass over five


def test_a_rank_beyond_the_ranks_is_an_error():
    with pytest.raises(ValueError, match="rank 2 of 2"):
        list(batches(random_posts(), Training(), 0, 1, rank=2, ranks=2))


def test_what_a_reader_raises_reaches_the_caller():
    def fail(item):
        raise OSError(f"disk {item}")

    with pytest.raises(OSError, match="disk 0"):
        list(ahead(fail, range(3), threads=2))


def test_readers_stop_when_nobody_listens():
    started = []
    for _ in ahead(lambda n: started.append(n), range(1000), threads=2):
        break
    assert len(started) <= 5


def test_augmentation_repeats_and_keeps_the_pixels():
    images = np.arange(1, 2 * 4 * 4 * 3 + 1, dtype=np.uint8).reshape(2, 4, 4, 3)
    moves = moves_of((2,), Training(crop=2), 5)
    assert np.array_equal(moves.of(images), moves_of((2,), Training(crop=2), 5).of(images))
    flipped = Moves(np.array([True, False]), np.zeros((2, 2), np.int64), 0).of(images)
    assert np.array_equal(flipped, [images[0, :, ::-1], images[1]])


def test_crops_move_the_image_by_at_most_the_padding():
    image = np.zeros((100, 5, 5, 3), np.uint8)
    image[:, 2, 2] = 255
    moves = moves_of((100,), Training(flip=False, crop=1), 0)
    where = {tuple(int(n) for n in np.argwhere(one[..., 0])[0]) for one in moves.of(image)}
    assert where == {(y, x) for y in (1, 2, 3) for x in (1, 2, 3)}


@pytest.mark.parametrize("side", [1, 6])
@pytest.mark.parametrize(("flip", "crop"), [(True, 2), (False, 2), (True, 0), (False, 0)])
def test_images_are_moved_alike_by_copies_and_by_one_gather(side, flip, crop):
    images = np.random.default_rng(0).integers(0, 256, (20, side, side + 1, 3), np.uint8)
    moves = moves_of((20,), Training(flip=flip, crop=crop), 3)
    wanted = moves.of(images)
    for image, mirrored, (y, x), seen in zip(images, moves.mirrored_N, moves.corner_N2, wanted, strict=True):
        window = np.pad(image, ((crop, crop), (crop, crop), (0, 0)))[y : y + side, x : x + side + 1]
        assert np.array_equal(seen, window[:, ::-1] if mirrored else window)
    (packed,) = Moves(moves.mirrored_N[None], moves.corner_N2[None], crop).packed(np.arange(20)[None])
    gathered = moved(torch.from_numpy(images), torch.from_numpy(packed), crop)
    assert np.array_equal(gathered.permute(0, 2, 3, 1).numpy(), wanted)


def test_on_a_gpu_the_next_is_begun_before_one_is_waited_for():
    begun = []

    def items():
        for number in range(3):
            begun.append(number)
            yield number

    assert [(item, len(begun)) for item in one_behind(items(), "cuda:1")] == [(0, 2), (1, 3), (2, 3)]
    begun.clear()
    assert [(item, len(begun)) for item in one_behind(items(), "cpu")] == [(0, 1), (1, 2), (2, 3)]
