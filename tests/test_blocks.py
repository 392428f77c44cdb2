"""Posts that a training reads in blocks of adjacent ones."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from helpers.random_posts import random_posts
from moe_core.settings import Training
from moe_core.training import order
from moe_core.training.batches import batches
from moe_core.training.order import in_blocks, rows_of_steps, shuffled, window_at
from moe_core.training.posts import ImagesInMemory, ImagesOnDevice, Posts


@pytest.mark.parametrize("count", [1, 2, 3, 63, 64, 65, 1000, 5003])
@pytest.mark.parametrize("block", [2, 3, 64])
def test_an_order_in_blocks_is_a_permutation_that_depends_on_seed_and_epoch(count, block):
    found = in_blocks(np.arange(count), count, block, 0, 0)
    assert sorted(found.tolist()) == list(range(count))
    for seed, epoch in ((1, 0), (0, 1)):
        assert count < 63 or found.tolist() != in_blocks(np.arange(count), count, block, seed, epoch).tolist()


def test_blocks_of_one_are_the_order_of_before():
    assert np.array_equal(in_blocks(np.arange(1000), 1000, 1, 3, 4), shuffled(np.arange(1000), 1000, 3, 4))


def test_an_order_in_blocks_is_told_place_by_place():
    found = in_blocks(np.arange(100), 100, 8, 3, 4)
    assert [int(in_blocks(np.array([place]), 100, 8, 3, 4)[0]) for place in range(100)] == found.tolist()


def test_a_window_holds_whole_blocks_and_a_batch_as_many_as_it_can(monkeypatch):
    monkeypatch.setattr(order, "LANES", 16)
    found, window = in_blocks(np.arange(400), 400, 8, 0, 0), window_at(np.arange(400), 400, 8)
    assert np.bincount(window).tolist() == [128, 128, 144]  # 50 blocks: 16, 16 and the last 18
    blocks = [np.bincount(found[window == number] // 8, minlength=50) for number in range(3)]
    assert all(set(count.tolist()) == {0, 8} for count in blocks)
    assert all(len(set((found[first : first + 16] // 8).tolist())) == 16 for first in range(0, 256, 16))


def test_posts_of_a_block_come_in_a_random_order_of_their_own(monkeypatch):
    monkeypatch.setattr(order, "LANES", 4)
    found = in_blocks(np.arange(4096), 4096, 64, 0, 0)
    turns = {tuple((found[found // 64 == block] % 64).tolist()) for block in range(64)}
    assert len(turns) == 64


def test_ranks_share_the_posts_of_a_step_and_each_has_blocks_of_its_own():
    whole = rows_of_steps(8192, 64, 0, range(128), block=16)
    ranks = [rows_of_steps(8192, 64, 0, range(128), slice(rank, None, 4), block=16) for rank in range(4)]
    assert np.array_equal(np.sort(np.concatenate(ranks, 1)), np.sort(whole))
    blocks = [set((rows // 16).reshape(-1).tolist()) for rows in ranks]
    assert sum(map(len, blocks)) == len(set.union(*blocks)) == 512


@dataclass(frozen=True)
class Counted:
    """Images that count what is fetched of them, and refuse to be read one by one."""

    images: ImagesInMemory
    fetches: list[np.ndarray] = field(default_factory=list)

    def __len__(self):
        return len(self.images)

    def read(self, rows_B, moves=None):
        assert len(rows_B) == 1  # to see how large they are
        return self.images.read(rows_B, moves)

    def fetched(self, rows_N):
        self.fetches.append(rows_N)
        return self.images.subset(rows_N)


def all_of(posts, training, first=0, last=40, **more):
    return [(b.step, b.images_BCHW, b.tags_BM) for b in batches(posts, training, first, last, **more)]


def same(one, two):
    return len(one) == len(two) and all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2]) for a, b in zip(one, two, strict=True)
    )


@pytest.fixture
def few_lanes(monkeypatch):
    monkeypatch.setattr(order, "LANES", 4)


@pytest.mark.parametrize("more", [{}, {"resample": "sqrt", "resample_below": 20}, {"batch_size": 7}])
def test_batches_in_blocks_are_the_same_wherever_the_images_are_and_whoever_reads(few_lanes, more):
    posts = replace(random_posts(), block=4)
    training = Training(**{"batch_size": 8, **more})
    wanted = all_of(posts.on_device(1 << 20, "cpu"), training)
    assert isinstance(posts.on_device(1 << 20, "cpu").images, ImagesOnDevice)
    assert same(all_of(posts, training), wanted)
    assert same(all_of(posts, training, threads=5), wanted)
    assert same(all_of(posts, training, first=13), wanted[13:])
    assert not same(all_of(replace(posts, block=1), training), wanted)


def test_every_block_is_fetched_once_an_epoch_and_the_part_that_steps_draw(few_lanes):
    training = Training(batch_size=6)  # a window of 16 ends within a step
    images = Counted(random_posts().images)
    posts = Posts(images, torch.zeros(64, dtype=torch.int64), torch.arange(65), block=4)
    all_of(posts, training, 0, 20)  # 10 steps an epoch, which leave 4 posts
    assert [len(rows) for rows in images.fetches] == [16, 16, 16, 12] * 2
    assert all(len(set((rows // 4).tolist())) == 4 for rows in images.fetches)
    images.fetches.clear()
    all_of(posts, training, 4, 7)  # posts 24 to 42 of the epoch
    assert [len(rows) for rows in images.fetches] == [8, 10]


def test_ranks_draw_what_one_process_draws_that_accumulates_as_many_batches(few_lanes):
    training, posts = Training(batch_size=4), replace(random_posts(), block=4)
    alone = all_of(posts, training)
    ranks = [all_of(posts, training, rank=rank, ranks=2, last=20) for rank in range(2)]
    for step, parts in enumerate(zip(*ranks, strict=True)):
        seen = [
            {image.numpy().tobytes() for _, images, _ in some for image in images}
            for some in (parts, alone[2 * step : 2 * step + 2])
        ]
        assert seen[0] == seen[1]
        assert len(seen[0]) == 8


def test_what_a_window_raises_reaches_the_caller(few_lanes):
    class Broken(ImagesInMemory):
        def fetched(self, rows_N):
            raise OSError("no answer")

    posts = random_posts()
    broken = replace(posts, images=Broken(posts.images.images_NHWC), block=4)
    with pytest.raises(OSError, match="no answer"):
        all_of(broken, Training(batch_size=8))


def test_a_subset_is_read_in_blocks_of_its_own_posts():
    posts = replace(random_posts(), block=4).subset(np.arange(0, 64, 2))
    assert posts.block == 4
    found = rows_of_steps(len(posts), 8, 0, range(4), block=posts.block)
    assert sorted(found.reshape(-1).tolist()) == list(range(32))
