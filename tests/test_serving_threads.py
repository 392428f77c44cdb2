"""One bundle asked by several threads at once: the answers of one thread, within the bound on memory."""

import asyncio
import random
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from helpers.bundles import EXPERTS, bundle_at, flip, images, random_parts, room_for
from moe_core.serving.bundle import Bundle
from moe_core.serving.cache import ExpertCache
from moe_core.serving.routed import routed
from moe_core.training.posts import ImagesInMemory

THREADS, ROUNDS = 4, 12


@pytest.fixture(scope="module", params=[0, 1], ids=["whole", "branches"])
def folder(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("threads")
    return bundle_at(root / "bundle", random_parts(root, request.param), branch_at=request.param, precision="float32")


def answers(bundle, seed, topk=1):
    batches = [images(count, seed + count) for count in (5, 0, 9)]
    return torch.cat([answer.probabilities_BV for answer in routed(bundle, batches, window=2, topk=topk)])


def same(one, other):
    """Of other experts they differ by 0.01 and more; by 1e-6 where torch divides the work among other threads."""
    return one.shape == other.shape and torch.allclose(one, other, atol=1e-6)


def in_threads(work, count=THREADS):
    """`work(number)` in threads that begin at the same time."""
    begin = threading.Barrier(count)

    def run(number):
        begin.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return [done.exception() or done.result() for done in [pool.submit(run, number) for number in range(count)]]


@pytest.mark.parametrize("most", [2, 3, EXPERTS])
def test_threads_get_the_answers_of_one_thread(folder, most):
    alone = {(seed, topk): answers(Bundle(folder), seed, topk) for seed in range(3) for topk in (1, 3)}
    bundle = Bundle(folder, room_for(folder, most))

    def work(number):
        cases = [((number + turn) % 3, (1, 3)[turn % 2]) for turn in range(ROUNDS)]
        return [same(answers(bundle, *case), alone[case]) for case in cases]

    assert in_threads(work) == [[True] * ROUNDS] * THREADS
    assert bundle.experts.most_held_bytes <= room_for(folder, most)


def test_a_thread_s_network_is_its_own_while_it_computes(folder):
    """The second thread puts its expert in while the first one is between two batches of its own."""
    bundle, pictures = Bundle(folder), ImagesInMemory(images(3))
    wanted = {key: Bundle(folder).expert_features(key, pictures) for key in ("e000", "e001")}
    filled, answered = threading.Event(), threading.Event()

    class Slow(ImagesInMemory):
        def read(self, rows_B, moves=None):
            filled.set()
            assert answered.wait(60)
            return super().read(rows_B)

    def work(number):
        if number == 0:
            return bundle.expert_features("e000", Slow(images(3)))
        assert filled.wait(60)
        found = bundle.expert_features("e001", pictures)
        answered.set()
        return found

    first, second = in_threads(work, 2)
    assert same(first, wanted["e000"])
    assert same(second, wanted["e001"])


def test_threads_may_ask_on_different_devices(folder):
    """cpu:0 is another device by its name, so it gets networks of its own, as a GPU does."""
    bundle = Bundle(folder, room_for(folder, 2))
    alone = answers(Bundle(folder), 0)

    def work(number):
        batches = [images(count, count) for count in (5, 0, 9)]
        found = list(routed(bundle, batches, device=("cpu", "cpu:0")[number % 2]))
        return same(torch.cat([answer.probabilities_BV for answer in found]), alone)

    assert in_threads(work) == [True] * THREADS
    assert bundle.router_on("cpu:0") is bundle.router_on("cpu:0") is not bundle.router_on("cpu")
    assert bundle.experts_on("cpu:0") is bundle.experts_on("cpu:0") is not bundle.experts
    assert bundle.experts_on("cpu:0").most_held_bytes <= room_for(folder, 2)


def test_experts_that_lie_on_a_device_are_not_copied_there_for_each_window(folder):
    bundle = Bundle(folder, room_for(folder, EXPERTS + 1))
    for window in (1, 2, 3):
        list(routed(bundle, [images(9)] * 6, window=window, device="cpu:0"))
    assert 1 <= bundle.experts_on("cpu:0").reads <= EXPERTS
    assert bundle.experts.reads == 0


def test_two_bundles_in_threads_do_not_mix(folder, tmp_path):
    other = bundle_at(tmp_path / "other", random_parts(tmp_path, 0, count=2), precision="float32")
    alone = [answers(Bundle(path), 0) for path in (folder, other)]
    bundles = [Bundle(path, room_for(path, 2)) for path in (folder, other)]
    found = in_threads(lambda n: [same(answers(bundles[n % 2], 0), alone[n % 2]) for _ in range(ROUNDS)])
    assert found == [[True] * ROUNDS] * THREADS


def test_a_stream_that_is_left_midway_keeps_nothing_from_others(folder):
    bundle = Bundle(folder, room_for(folder, 2))
    alone = answers(Bundle(folder), 0)
    left = routed(bundle, (images(6, seed) for seed in range(100)), window=2)
    next(left)
    assert in_threads(lambda n: same(answers(bundle, 0), alone)) == [True] * THREADS
    with ThreadPoolExecutor(1) as pool:  # another thread takes it further
        there = pool.submit(next, left).result()
    assert same(there.probabilities_BV, list(routed(Bundle(folder), [images(6, 0), images(6, 1)]))[1].probabilities_BV)
    left.close()
    assert same(answers(bundle, 0), alone)


def test_an_error_in_one_thread_leaves_the_others_their_answers(tmp_path, folder):
    copy = bundle_at(tmp_path / "copy", random_parts(tmp_path, 0), precision="float32")
    bundle, pictures = Bundle(copy, room_for(copy, 2)), ImagesInMemory(images(5))
    wanted = {key: Bundle(copy).expert_features(key, pictures) for key in ("e000", "e002")}
    flip(copy / "experts" / "e001.safetensors", -1)

    def work(number):
        if number % 2:
            return [same(bundle.expert_features(key, pictures), wanted[key]) for key in ("e000", "e002") * ROUNDS]
        wrong = 0
        for _ in range(ROUNDS):
            with pytest.raises(ValueError, match="SHA-256 differs"):
                bundle.expert_features("e001", pictures)
            wrong += 1
        return wrong

    assert in_threads(work) == [ROUNDS, [True] * 2 * ROUNDS] * 2


def test_asyncio_may_ask_through_its_threads(folder):
    bundle = Bundle(folder, room_for(folder, 2))
    alone = [answers(Bundle(folder), seed) for seed in range(6)]

    async def all_at_once():
        return await asyncio.gather(*(asyncio.to_thread(answers, bundle, seed) for seed in range(6)))

    assert all(same(one, other) for one, other in zip(asyncio.run(all_at_once()), alone, strict=True))


class Weights(dict):
    """A mapping that can be watched."""


@pytest.mark.parametrize("most_bytes", [60, 75, 1000])
def test_what_threads_hold_together_stays_within_the_bound(most_bytes):
    sizes = {key: 10 + 5 * (number % 5) for number, key in enumerate("abcdefgh")}
    lock, alive, reading, over = threading.Lock(), [], [], []

    def look():
        with lock:
            there = [one["key"] for ref in alive if (one := ref()) is not None]
            total = sum(sizes[key] for key in [*there, *reading])
            if total > most_bytes:
                over.append((there, list(reading)))

    def read(key):
        with lock:
            reading.append(key)
        look()
        state = Weights(key=key)
        with lock:
            reading.remove(key)
            alive.append(weakref.ref(state))
        return state

    experts = ExpertCache(sizes, read, most_bytes)

    def work(number):
        draw = random.Random(number)
        right = []
        for _ in range(60):
            with experts.using(draw.choice("abcdefgh")) as state:
                right.append(state["key"] in sizes)
                del state
            experts.each(draw.sample("abcdefgh", 3), lambda key, state: right.append(state["key"] == key))
        return all(right)

    assert in_threads(work, 8) == [True] * 8
    assert over == []
    assert experts.most_held_bytes <= most_bytes


def test_threads_that_want_the_same_expert_read_it_once():
    go, reads = threading.Event(), []

    def read(key):
        reads.append(key)
        assert go.wait(60)
        return Weights(key=key)

    experts = ExpertCache({"a": 10, "b": 10}, read, 100)

    def work(number):
        if number == 3:
            go.set()
        with experts.using("a") as state:
            return state["key"]

    assert in_threads(work) == ["a"] * 4
    assert reads == ["a"]


def test_a_failed_reading_frees_the_place_and_the_next_thread_reads_itself():
    failing = threading.Event()
    failing.set()

    def read(key):
        if key == "a" and failing.is_set():
            raise OSError("gone")
        return Weights(key=key)

    experts = ExpertCache(dict.fromkeys("abc", 10), read, 20)
    with pytest.raises(OSError, match="gone"), experts.using("a"):
        pass
    seen = []
    with pytest.raises(OSError, match="gone"):
        experts.each("bac", lambda key, state: seen.append(key))
    assert seen == ["b"]
    failing.clear()
    experts.each("bac", lambda key, state: seen.append(state["key"]))
    assert seen == ["b", "b", "a", "c"]


def test_a_bundle_that_nobody_uses_leaves_memory_at_once(folder):
    bundle = Bundle(folder)
    answers(bundle, 0)
    gone = weakref.ref(bundle.router)
    del bundle
    assert gone() is None
