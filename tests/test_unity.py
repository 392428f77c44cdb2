import numpy as np
import pytest
import torch

from moe_core.evaluation.metrics import tag_agreement

LINE = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])  # the nearer on the line, the nearer by cosine
EXPERTS = np.array([0, 0, 1, 1])


def agreement(features, experts, tags, k):
    """`tags`: the hashtags of each post."""
    starts = torch.tensor([0, *map(len, tags)]).cumsum(0)
    return tag_agreement(features, experts, torch.tensor([tag for some in tags for tag in some]), starts, k)


def test_overlaps_of_nearest_neighbors_by_hand():
    found = agreement(LINE, EXPERTS, [{0, 1}, {0}, {0, 2}, {3}], k=1)
    # within: 0-1 share one of two, 2-3 none; across: 0 and 1 are nearest to 2, 2 and 3 to 1
    assert found["within"].tolist() == [0.5, 0.5, 0, 0]
    assert found["across"] == pytest.approx([1 / 3, 1 / 2, 1 / 2, 0])


def test_two_neighbors_are_averaged_and_one_is_enough_where_there_is_but_one():
    found = agreement(LINE, EXPERTS, [{0}, {0}, {0}, {1}], k=2)
    assert found["within"].tolist() == [1, 1, 0, 0]
    assert found["across"].tolist() == [0.5, 0.5, 1, 0]


def test_one_expert_has_nothing_across():
    found = agreement(LINE, np.zeros(4), [{0}] * 4, k=3)
    assert found["within"].tolist() == [1, 1, 1, 1]
    assert np.isnan(found["across"]).all()


def test_turned_spaces_agree_within_and_not_across():
    draw = np.random.default_rng(0)
    tags = draw.integers(0, 4, 600)
    features = torch.eye(4)[tags] + 0.1 * torch.from_numpy(draw.normal(size=(600, 4))).float()
    expert = draw.integers(0, 2, 600)
    turned = features.clone()
    turned[expert == 1] = features[expert == 1].roll(1, dims=1)
    sets = [{int(tag)} for tag in tags]
    one, two = (agreement(f, expert, sets, k=5) for f in (features, turned))
    assert one["across"].mean() > 0.95
    assert two["within"].mean() > 0.95
    assert two["across"].mean() < 0.05


def test_posts_in_two_parts_are_as_in_one():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(1100, 3, generator=draw)
    expert = np.arange(1100) % 2
    whole = agreement(features, expert, [{n % 7} for n in range(1100)], k=1)
    n = 1000
    similar = torch.nn.functional.normalize(features, dim=1) @ torch.nn.functional.normalize(features[n], dim=0)
    similar[torch.from_numpy(expert != expert[n])] = -2
    similar[n] = -2
    assert whole["within"][n] == float(int(similar.argmax()) % 7 == n % 7)
