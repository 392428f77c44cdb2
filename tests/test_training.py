import pytest
import torch

from moe_core.models.resnet import build
from moe_core.settings import Network, Training
from moe_core.training.batches import Posts, augment, rows_of_step
from moe_core.training.loop import hashtag_loss, train
from moe_core.training.schedule import learning_rate

TINY = Network(widths=(4, 8), depths=(1, 1), embedding=8)


def drawn_posts(count=64, hashtags=4):
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=draw)
    return Posts(images, torch.randint(0, hashtags, (count,), generator=draw), torch.arange(count + 1))


def test_targets_have_a_one_at_each_tag():
    posts = Posts(torch.zeros(3, 3, 1, 1, dtype=torch.uint8), torch.tensor([0, 2, 1]), torch.tensor([0, 2, 2, 3]))
    assert posts.targets(torch.tensor([2, 0, 1]), 3).tolist() == [[0, 1, 0], [1, 0, 1], [0, 0, 0]]


def test_rows_and_tags_must_agree():
    with pytest.raises(ValueError, match="one start more than images"):
        Posts(torch.zeros(3, 3, 1, 1, dtype=torch.uint8), torch.tensor([0]), torch.tensor([0, 1]))


def test_one_pass_sees_every_post_once_and_the_next_in_another_order():
    first = torch.cat([rows_of_step(10, 5, 0, s) for s in (0, 1)])
    second = torch.cat([rows_of_step(10, 5, 0, s) for s in (2, 3)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()


def test_order_depends_on_the_step_alone():
    late = rows_of_step(10, 5, 7, 3)
    rows_of_step(10, 5, 7, 0)
    assert torch.equal(late, rows_of_step(10, 5, 7, 3))


def test_augmentation_repeats_and_keeps_the_pixels():
    images = torch.arange(1, 2 * 3 * 4 * 4 + 1, dtype=torch.uint8).reshape(2, 3, 4, 4)
    assert torch.equal(augment(images, True, 2, 0, 5), augment(images, True, 2, 0, 5))
    flipped = augment(images, True, 0, 0, 5)
    assert all(torch.equal(f, i) or torch.equal(f, i.flip(2)) for f, i in zip(flipped, images, strict=True))


def test_softmax_loss_by_hand():
    # uniform logits over 4 tags cost log 4 whatever the targets
    loss = hashtag_loss(torch.zeros(1, 4), torch.tensor([[1.0, 1.0, 0.0, 0.0]]), "softmax")
    assert loss.item() == pytest.approx(1.386294)


def test_sigmoid_loss_by_hand():
    # four tags at probability one half cost 4 log 2
    loss = hashtag_loss(torch.zeros(1, 4), torch.tensor([[1.0, 1.0, 0.0, 0.0]]), "sigmoid")
    assert loss.item() == pytest.approx(2.772589)


def test_schedules_reach_their_peak_and_end_near_zero():
    assert [learning_rate("one-cycle", 1.0, 0.5, s, 10) for s in (0, 5, 9)] == pytest.approx([0.1, 1.0, 0.2])
    assert learning_rate("cosine", 1.0, 0.5, 0, 10) == 1.0
    assert learning_rate("cosine", 1.0, 0.5, 10, 10) == pytest.approx(0.0)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where():
    model = build(TINY, 4, seed=0)
    with pytest.raises(FloatingPointError, match=r"between steps \d+ and \d+ of 80"):
        list(train(model, drawn_posts(), Training(epochs=10, batch_size=8, lr=1e30)))


def test_a_fixed_decoder_stays_and_the_rest_moves():
    model = build(TINY, 4, seed=0)
    decoder, filters = model.fc.weight.clone(), model.conv1.weight.clone()
    list(train(model, drawn_posts(), Training(epochs=1, batch_size=8), train_decoder=False))
    assert torch.equal(model.fc.weight, decoder)
    assert not torch.equal(model.conv1.weight, filters)


@pytest.mark.parametrize("stop_after", [10, 20, 30])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, stop_after):
    training = Training(epochs=5, batch_size=8, checkpoint_seconds=1e-9)
    whole = build(TINY, 4, seed=0)
    list(train(whole, drawn_posts(), training))

    checkpoint = tmp_path / "checkpoint.safetensors"
    for m in train(build(TINY, 4, seed=0), drawn_posts(), training, checkpoint=checkpoint):
        if m.step > stop_after:
            break
    resumed = build(TINY, 4, seed=99)
    steps = [m.step for m in train(resumed, drawn_posts(), training, checkpoint=checkpoint)]
    assert steps[0] == stop_after + 10
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    training = Training(epochs=5, batch_size=8, checkpoint_seconds=1e-9)
    list(train(build(TINY, 4, seed=0), drawn_posts(), training, checkpoint=checkpoint))
    with pytest.raises(ValueError, match="of a run of 40 steps, this run has 80"):
        list(
            train(
                build(TINY, 4, seed=0), drawn_posts(), training.model_copy(update={"epochs": 10}), checkpoint=checkpoint
            )
        )


def test_no_posts_is_an_error():
    with pytest.raises(ValueError, match="no posts to train on"):
        list(train(build(TINY, 4, seed=0), drawn_posts(0), Training()))
