"""Experts trained together with one decoder: the arithmetic; and what a kill or another number of processes changes."""

import multiprocessing
import signal
import time
from dataclasses import replace

import pytest
import torch

from helpers.joint_work import PRELOAD, TRAINING, die_at_a_rename, finish, hold, joint, network, random_posts, work
from moe_core.errors import NotFinite
from moe_core.settings import Decoder
from moe_core.training.joint import outer_step, take_part, trained_decoder, trained_expert
from moe_core.training.loop import train
from moe_core.weights import load_weights

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(PRELOAD)


def same(one, two):
    return one.keys() == two.keys() and all(
        all(torch.equal(state[name], two[key][name]) for name in state) for key, state in one.items()
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return finish(joint(tmp_path_factory.mktemp("undisturbed")))


def decoder(*numbers):
    return {"weight": torch.tensor([numbers]), "bias": torch.tensor([0.0])}


def test_an_outer_step_by_hand():
    # changes of 2 and 6, weighted 3 to 1: 3; half of it is 1.5
    zero = decoder(0.0)
    moved, velocity = outer_step(decoder(1.0), zero, [decoder(3.0), decoder(7.0)], [30, 10], lr=0.5, momentum=0.0)
    assert moved["weight"].item() == 1 + 0.5 * 3
    assert velocity["weight"].item() == -3


def test_momentum_goes_on_where_nothing_changes_any_more():
    first, velocity = outer_step(decoder(0.0), decoder(0.0), [decoder(1.0)], [5], lr=1.0, momentum=0.5)
    assert first["weight"].item() == 1 + 0.5  # Nesterov looks one step ahead
    second, velocity = outer_step(first, velocity, [first], [5], lr=1.0, momentum=0.5)
    assert second["weight"].item() == pytest.approx(1.5 + 0.25)
    assert velocity["weight"].item() == -0.5


def test_a_step_of_one_gives_the_one_decoder_back_to_the_bit():
    draw = torch.Generator().manual_seed(0)
    old, new = (
        {"weight": torch.randn(50, 20, generator=draw) * 10**k, "bias": torch.randn(50, generator=draw)}
        for k in (-3, 2)
    )
    moved, _ = outer_step(old, {n: torch.zeros(()) for n in old}, [new], [7], lr=1.0, momentum=0.0)
    assert all(torch.equal(moved[name], new[name]) for name in new)


def test_one_expert_alone_is_plain_training(tmp_path):
    torch.set_num_threads(1)
    plain = network("e000")
    list(train(plain, random_posts(40), TRAINING))
    alone = finish(joint(tmp_path, sizes=(40,), rounds=4, settle_rounds=0, outer_lr=1.0, outer_momentum=0.0))
    assert same(alone, {"e000": plain.state_dict()})


def test_all_end_with_one_decoder_that_has_moved_and_bodies_of_their_own(undisturbed):
    one, two, three = undisturbed.values()
    assert torch.equal(one["fc.weight"], two["fc.weight"])
    assert torch.equal(one["fc.bias"], three["fc.bias"])
    assert not torch.equal(one["fc.weight"], network("e000").fc.weight)
    assert not torch.equal(one["conv1.weight"], two["conv1.weight"])


def test_the_decoder_rests_in_the_last_rounds_and_experts_go_on(tmp_path):
    resting = joint(tmp_path, rounds=3, settle_rounds=2)
    seen = {}
    for one in take_part(resting):
        if one and one.number == 1 and not seen:
            seen["decoder"] = load_weights(resting.decoder_file(1))[0]
            seen["expert"] = load_weights(resting.expert_file(0, "e000"))[0]
    assert torch.equal(trained_decoder(resting)["weight"], seen["decoder"]["weight"])
    assert not torch.equal(trained_expert(resting, "e000")["conv1.weight"], seen["expert"]["model.conv1.weight"])


def test_the_first_decoder_is_the_mean_of_the_experts_weighted_by_their_posts(tmp_path):
    whole = joint(tmp_path, sizes=(48, 16), settle_rounds=0, outer_lr=1.0, outer_momentum=0.0)
    for one in take_part(whole):
        if one and one.number == 1:
            break
    large, small = (load_weights(whole.expert_file(0, key))[0]["model.fc.weight"] for key in ("e000", "e001"))
    mean = 0.75 * large + 0.25 * small
    assert torch.allclose(load_weights(whole.decoder_file(1))[0]["weight"], mean, atol=1e-6)


def test_posts_for_fewer_steps_than_rounds(tmp_path):
    few = joint(tmp_path, sizes=(16, 1), rounds=9)
    assert [few.last_step(number, "e001") for number in range(9)] == [1, 2, 2, 3, 3, 4, 4, 5, 5]
    one, two = finish(few).values()
    assert torch.equal(one["fc.weight"], two["fc.weight"])


def test_what_is_no_longer_needed_leaves(tmp_path):
    finish(joint(tmp_path, rounds=4))
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == [
        *(f"0003.e00{key}.safetensors" for key in range(3)),
        *(f"decoder-000{rounds}.safetensors" for rounds in (3, 4)),
    ]


def test_images_that_had_no_room_on_the_device_are_not_given_the_same_room_once_more(tmp_path, monkeypatch):
    seen = []

    def train_here(model, posts, training, **more):
        seen.append(training.device_mib)
        return train(model, posts, training, **more)

    monkeypatch.setattr("moe_core.training.joint.train", train_here)
    finish(joint(tmp_path))
    assert set(seen) == {0}


def test_a_loss_that_is_not_finite_stops_it_and_says_where(tmp_path):
    wild = replace(joint(tmp_path), training=TRAINING.model_copy(update={"lr": 1e30}))
    with pytest.raises(NotFinite, match=r"between steps \d+ and \d+ of 25"):
        finish(wild)


def test_settled_rounds_must_leave_some_that_move():
    with pytest.raises(ValueError, match="settle_rounds 3 must be fewer than rounds 3"):
        Decoder(mode="joint", rounds=3, settle_rounds=3)


def test_two_processes_give_what_one_gives(undisturbed, tmp_path):
    processes = [FORKS.Process(target=work, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    assert same(finish(joint(tmp_path)), undisturbed)


def test_killed_at_every_rename_and_resumed_it_ends_in_the_same_bits(undisturbed, tmp_path):
    attempts = [-signal.SIGKILL]
    while attempts[-1] == -signal.SIGKILL:
        process = FORKS.Process(target=die_at_a_rename, args=(tmp_path, len(attempts) % 2 == 0))
        process.start()
        process.join(300)
        attempts.append(process.exitcode)
        assert len(attempts) < 100
    assert attempts[-1] == 0
    assert len(attempts) > 20
    assert same(finish(joint(tmp_path)), undisturbed)


@pytest.mark.parametrize("number", [0, 1])
def test_what_a_killed_worker_held_is_taken_up_by_another(undisturbed, tmp_path, number):
    torch.set_num_threads(1)
    mine, other, waited = joint(tmp_path), None, 0
    for one in take_part(mine):
        if one is None:
            waited += 1
            other.kill()
            other.join(10)
        elif one.number == number and other is None:
            other = FORKS.Process(target=hold, args=(tmp_path,))
            other.start()
            deadline = time.monotonic() + 300
            while not (tmp_path / "held").exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
    assert waited >= 1
    assert other.exitcode == -signal.SIGKILL
    assert same({key: trained_expert(mine, key) for key in mine.posts}, undisturbed)
