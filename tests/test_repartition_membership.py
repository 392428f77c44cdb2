"""Which experts are trained again: figures to do in the head."""

from types import SimpleNamespace

import numpy as np
import pytest

from helpers.arrivals import lines
from moe_core.stages.gate import current_partition, membership, retraining


def carried(before, now, most, same_trunk=True):
    """One expert that was trained on the posts `before` and has `now`: (hash then, what is decided, members)."""
    text, written = lines(12), []
    content_hash = membership.hash_of(text.of(np.array(before)))
    old = SimpleNamespace(metadata={"members": {"e000": content_hash}})
    frame = membership.frame_of("expert", "e000", text.members(np.array(before)))
    found = decided(old, text.members(np.array(now)), frame, most, written, same_trunk)
    return content_hash, found, written[0]


def decided(old, now, frame, most, written, same_trunk=True):
    return retraining.decide(
        "expert", ["e000"], lambda k: now, old, lambda key: frame, same_trunk, most, written.append
    )


@pytest.mark.parametrize(("most", "kept"), [(0.2, True), (0.19, False)])
def test_one_of_ten_posts_left_and_one_came_is_a_change_of_a_fifth(most, kept):
    content_hash, found, kept_members = carried(list(range(10)), [*range(9), 10], most)
    assert found.changed == {"e000": 0.2}
    assert (found.hashes["e000"] == content_hash) is kept
    assert found.kept == ({"e000": 0.2} if kept else {})
    assert kept_members["id"].to_list() == [f"p{n}" for n in (range(10) if kept else [*range(9), 10])]
    assert found.lineage["e000"] == [content_hash] if kept else [content_hash, found.hashes["e000"]]


def test_small_changes_add_up_until_the_expert_is_trained_again():
    """Against what it was trained on, not against the partition before: 1 of 10 is kept, the second is one too many."""
    content_hash, first, frame = carried(list(range(10)), list(range(11)), most=0.1)
    assert first.hashes["e000"] == content_hash
    assert len(frame) == 10, "the tenth is not forgotten to be new"
    text = lines(12)
    old = SimpleNamespace(metadata={"members": first.hashes, "lineage": {"expert": first.lineage}})
    second = decided(old, text.members(np.array(range(12))), frame, 0.1, [])
    assert second.changed == {"e000": 0.2}
    assert second.hashes["e000"] == membership.hash_of(text.of(np.arange(12)))


def test_with_another_trunk_every_expert_starts_from_scratch():
    content_hash, found, _ = carried(list(range(10)), list(range(10)), most=1.0, same_trunk=False)
    assert found.lineage == {"e000": [content_hash]}
    assert found.kept == {}


def test_a_post_of_a_shard_that_the_trunk_has_not_seen_is_known_with_the_version_of_its_shard():
    assert lines(1).of(np.array([0])) == ["p0 0"]
    assert lines(1, "v1").of(np.array([0])) == ["p0 0 v1"]


# ---- keys


def current(keys, sizes, following):
    return current_partition.CurrentPartition("v", "2", {}, {}, "t", keys, sizes, following)


def test_the_smallest_go_and_no_number_comes_back():
    three = current(["e000", "e001", "e002"], [5, 3, 4], 3)
    assert current_partition.keys_for(None, 2) == ("e000", "e001")
    assert current_partition.keys_for(three, 3) == ("e000", "e001", "e002")
    assert current_partition.keys_for(three, 2) == ("e000", "e002")
    assert current_partition.keys_for(current(["e000", "e002"], [5, 4], 3), 4) == ("e000", "e002", "e003", "e004")
    assert current_partition.keys_for(current(["e000", "e001"], [3, 3], 2), 1) == ("e000",), "of equals the later goes"
