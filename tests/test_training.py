import threading
import time
from types import SimpleNamespace

import pytest
import torch

from helpers.processes import until
from helpers.random_posts import random_posts
from moe_core.errors import NotFinite
from moe_core.models.resnet import build
from moe_core.settings import Network, Training
from moe_core.training import loop
from moe_core.training.batches import batches, normalize
from moe_core.training.checkpoint import COST, Checkpoints, load_checkpoint
from moe_core.training.loop import learning_rate, steps_of, train
from moe_core.training.losses import hashtag_loss
from moe_core.weights import load_weights, save_weights

TINY = Network(widths=(4, 8), depths=(1, 1), embedding=8)


def test_gradients_of_several_batches_make_one_step():
    training = Training(epochs=0.25, batch_size=8, accumulate=2, momentum=0, weight_decay=0, precision="float32")
    assert steps_of(64, training) == 1
    model = build(TINY, 4, seed=0)
    list(train(model, random_posts(), training))
    by_hand = build(TINY, 4, seed=0).train()
    for batch in batches(random_posts(), training, 0, 2):
        (hashtag_loss(by_hand(normalize(batch.images_BCHW)), batch.tags_BM, "softmax") / 2).backward()
    lr = learning_rate("one-cycle", training.lr, training.warmup, 0, 1)
    for mine, other in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(mine, other - lr * other.grad, atol=1e-6)


def test_losses_that_are_read_by_time_are_those_read_every_ten_steps(monkeypatch):
    def measured():
        found = train(build(TINY, 4, seed=0), random_posts(), Training(epochs=6, batch_size=8, precision="float32"))
        return [(m.step, m.loss, m.lr, m.images_seen) for m in found]

    often = measured()
    monkeypatch.setattr(loop, "READ_BY_TIME", ("cpu",))
    monkeypatch.setattr(loop, "READ_SECONDS", 1e6)
    monkeypatch.setattr(loop, "MOST_READ", 3)
    seldom = measured()  # of 48 steps, after 10, 40 and 48
    assert seldom == often
    assert [step for step, *_ in often] == [10, 20, 30, 40, 48]


def test_a_resumed_momentum_lies_in_memory_as_its_weight(tmp_path):
    training, file = Training(epochs=4, batch_size=8, precision="float32"), tmp_path / "checkpoint.safetensors"
    model = build(TINY, 4, seed=0)
    list(train(model, random_posts(), training, until=3, checkpoint=file))
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    assert load_checkpoint(file, model, optimizer, steps_of(64, training)) == 3
    strides = {tuple(w.shape): (w.stride(), optimizer.state[w]["momentum_buffer"].stride()) for w in model.parameters()}
    assert any(len(shape) == 4 and shape[1] > 1 and shape[2] > 1 for shape in strides)  # these are channels-last
    assert all(weight == momentum for weight, momentum in strides.values())


def test_schedules_reach_their_peak_and_end_near_zero():
    assert [learning_rate("one-cycle", 1.0, 0.5, s, 10) for s in (0, 5, 9)] == pytest.approx([0.1, 1.0, 0.2])
    assert learning_rate("cosine", 1.0, 0.5, 0, 10) == 1.0
    assert learning_rate("cosine", 1.0, 0.5, 10, 10) == pytest.approx(0.0)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where():
    model = build(TINY, 4, seed=0)
    with pytest.raises(NotFinite, match=r"loss is nan between steps 1 and 2 of 80 at learning rate"):
        list(train(model, random_posts(), Training(epochs=10, batch_size=8, lr=1e30)))


def test_a_weight_that_is_not_finite_after_the_last_step_stops_the_run_too():
    model = build(TINY, 4, seed=0)
    model.bn1.running_mean[1] = float("inf")  # which no loss of a training shows
    with pytest.raises(NotFinite, match=r"bn1.running_mean is no longer finite between steps 0 and 1 of 1 at"):
        list(train(model, random_posts(8), Training(epochs=1, batch_size=8)))


def test_a_fixed_decoder_stays_and_the_rest_moves():
    model = build(TINY, 4, seed=0)
    decoder, filters = model.fc.weight.clone(), model.conv1.weight.clone()
    list(train(model, random_posts(), Training(epochs=1, batch_size=8), train_decoder=False))
    assert torch.equal(model.fc.weight, decoder)
    assert not torch.equal(model.conv1.weight, filters)


@pytest.mark.parametrize(("stop_after", "accumulate"), [(10, 1), (20, 1), (30, 1), (20, 2)])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, stop_after, accumulate, monkeypatch):
    monkeypatch.setattr(Checkpoints, "is_due", True)
    training = Training(epochs=5 * accumulate, batch_size=8, checkpoint_seconds=1e-9, accumulate=accumulate)
    whole = build(TINY, 4, seed=0)
    list(train(whole, random_posts(), training))

    checkpoint = tmp_path / "checkpoint.safetensors"
    for m in train(build(TINY, 4, seed=0), random_posts(), training, checkpoint=checkpoint):
        if m.step > stop_after:
            break
    resumed = build(TINY, 4, seed=99)
    steps = [m.step for m in train(resumed, random_posts(), training, checkpoint=checkpoint)]
    assert steps[0] == stop_after + 10
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_a_run_in_two_parts_ends_in_the_same_bits(tmp_path):
    training = Training(epochs=5, batch_size=8)
    whole, first, second = (build(TINY, 4, seed=0) for _ in range(3))
    list(train(whole, random_posts(), training))
    checkpoint = tmp_path / "checkpoint.safetensors"
    assert [m.step for m in train(first, random_posts(), training, until=13, checkpoint=checkpoint)] == [10, 13]
    assert [m.step for m in train(second, random_posts(), training, checkpoint=checkpoint)] == [20, 30, 40]
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_a_checkpoint_with_momentum_of_what_is_not_there_is_refused(tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    training = Training(epochs=5, batch_size=8)
    list(train(build(TINY, 4, seed=0), random_posts(), training, until=10, checkpoint=checkpoint))
    state, about = load_weights(checkpoint)
    save_weights(checkpoint, state | {"momentum.0": state["momentum.conv1.weight"].clone()}, about)
    with pytest.raises(ValueError, match=r"holds 'momentum.0', which the network has not: delete it"):
        list(train(build(TINY, 4, seed=0), random_posts(), training, checkpoint=checkpoint))


def test_held_stages_stay_as_they_were_and_the_others_learn():
    model = build(TINY, 4, seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.freeze_stages(1)
    list(train(model, random_posts(), Training(epochs=5, batch_size=8)))
    after = model.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"layer2", "conv_embed", "bn_embed", "fc"}


def test_a_resumed_run_with_held_stages_ends_in_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoints, "is_due", True)
    training = Training(epochs=5, batch_size=8, checkpoint_seconds=1e-9)
    whole, part, resumed = (build(TINY, 4, seed=0) for _ in range(3))
    for model in (whole, part, resumed):
        model.freeze_stages(1)
    list(train(whole, random_posts(), training))
    checkpoint = tmp_path / "checkpoint.safetensors"
    for m in train(part, random_posts(), training, checkpoint=checkpoint):
        if m.step == 30:
            break
    steps = [m.step for m in train(resumed, random_posts(), training, checkpoint=checkpoint)]
    assert steps[0] == 30
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_training_goes_on_while_a_checkpoint_is_written_and_spends_no_more_than_a_fiftieth_on_them(
    tmp_path, monkeypatch
):
    """Each takes a second by this clock, in which two measurements are made; the state is that of its step."""
    now, begun, written = [0.0], threading.Event(), threading.Event()
    model, file = build(TINY, 4, seed=0), tmp_path / "checkpoint.safetensors"
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def save(path, state, about):
        begun.set()
        assert written.wait(30)
        now[0] += 1
        save_weights(path, state, about)

    monkeypatch.setattr("moe_core.training.checkpoint.save_weights", save)
    monkeypatch.setattr("moe_core.training.checkpoint.time", SimpleNamespace(monotonic=lambda: now[0]))
    with Checkpoints(file, 10) as checkpoints:
        now[0] = 10
        assert checkpoints.is_due
        wanted = model.conv1.weight.detach().clone()
        checkpoints.save(model, optimizer, 3, 9)
        assert begun.wait(30)
        with torch.no_grad():
            model.conv1.weight.zero_()  # as training changes it meanwhile
        now[0] = 100
        assert not checkpoints.is_due
        written.set()
        until(file.exists)
        took = now[0] - 10
        assert torch.equal(load_weights(file)[0]["model.conv1.weight"], wanted)
        now[0] = 10 + COST * took - 1
        time.sleep(0.1)
        assert not checkpoints.is_due
        now[0] += 1
        until(lambda: checkpoints.is_due)


def test_a_checkpoint_that_cannot_be_written_ends_the_training_with_the_reason(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("moe_core.training.checkpoint.save_weights", full)
    training = Training(epochs=5, batch_size=8, checkpoint_seconds=1e-9)
    with pytest.raises(OSError, match="No space left"):
        list(train(build(TINY, 4, seed=0), random_posts(), training, checkpoint=tmp_path / "c"))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    training = Training(epochs=5, batch_size=8, checkpoint_seconds=1e-9)
    list(train(build(TINY, 4, seed=0), random_posts(), training, checkpoint=checkpoint))
    longer = training.model_copy(update={"epochs": 10})
    with pytest.raises(ValueError, match="of a run of 40 steps, this run has 80"):
        list(train(build(TINY, 4, seed=0), random_posts(), longer, checkpoint=checkpoint))


def test_no_posts_is_an_error():
    with pytest.raises(ValueError, match="no posts to train on"):
        list(train(build(TINY, 4, seed=0), random_posts(0), Training()))
