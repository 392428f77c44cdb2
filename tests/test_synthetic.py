import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from helpers.canonical import canonical_tags
from moe_core.data.sources.raw import RAW
from moe_core.data.synthetic import GENERIC_TAGS, SCENES, synthetic_posts

SIZE = 16


def draw(shard=0, shards=1, posts=100, seed=0):
    return [row for batch in synthetic_posts(shard, shards, posts, seed, SIZE) for row in batch.to_pylist()]


@pytest.fixture(scope="module")
def posts():
    return draw(posts=4000)


def pixels(data):
    """(size, size, 3) int, or None for a file that does not decode."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image).astype(int) if image.mode == "RGB" and image.format == "PNG" else None
    except (OSError, SyntaxError):
        return None


@pytest.fixture(scope="module")
def pictures(posts):
    return [pixels(post["image"]) for post in posts]


def test_one_post_in_one_shard():
    (post,) = draw(posts=1)
    assert post["split"] is None
    assert post["tags"]


def test_no_posts_are_no_batches():
    assert draw(posts=0) == []


def test_more_shards_than_posts_leave_shards_empty():
    assert [len(draw(shard, 5, posts=2)) for shard in range(5)] == [0, 0, 1, 0, 1]


def test_batches_have_the_schema_of_all_sources_and_at_most_a_thousand_posts():
    batches = list(synthetic_posts(0, 1, 1001, 0, SIZE))
    assert [len(batch) for batch in batches] == [1000, 1]
    assert all(batch.schema.equals(RAW) for batch in batches)


def test_the_same_seed_draws_the_same_bytes():
    assert draw(1, 3) == draw(1, 3)


def test_another_seed_draws_other_pictures_and_tags():
    ours, others = draw(), draw(seed=1)
    assert all(a["image"] != b["image"] for a, b in zip(ours, others, strict=True) if a["image"] and b["image"])
    assert [post["tags"] for post in ours] != [post["tags"] for post in others]


def test_a_shard_does_not_depend_on_the_shards_before_it():
    alone = draw(2, 3)
    assert [draw(shard, 3) for shard in range(3)][2] == alone


def test_shards_do_not_repeat_one_another():
    first, second = (draw(shard, 2) for shard in range(2))
    assert not {post["image"] for post in first if post["image"]} & {post["image"] for post in second}


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_shards_hold_every_post_once(shards):
    ids = [post["id"] for shard in range(shards) for post in draw(shard, shards, posts=100)]
    assert len(ids) == len(set(ids)) == 100


def test_ids_do_not_depend_on_the_seed_or_the_number_of_shards():
    assert {p["id"] for p in draw(seed=1)} == {p["id"] for s in range(3) for p in draw(s, 3)}


def test_images_are_rgb_of_the_size_asked_for_but_for_a_few_broken_ones(posts, pictures):
    assert {picture.shape for picture in pictures if picture is not None} == {(SIZE, SIZE, 3)}
    broken = [post["image"] for post, picture in zip(posts, pictures, strict=True) if picture is None]
    assert 5 <= len(broken) <= 40  # of 4,000, where 20 are expected


def test_images_are_broken_in_three_ways(posts, pictures):
    broken = [post["image"] for post, picture in zip(posts, pictures, strict=True) if picture is None]
    assert {data[:4] for data in broken} == {b"", b"<htm", b"\x89PNG"}


def test_about_two_in_a_hundred_posts_repeat_the_one_before(posts, pictures):
    repeats = [
        at
        for at in range(1, len(posts))
        if pictures[at] is not None
        and pictures[at - 1] is not None
        and np.abs(pictures[at] - pictures[at - 1]).mean() < 10  # of 256 levels; two scenes differ by far more
    ]
    assert 40 <= len(repeats) <= 130  # 80 are expected
    assert all(posts[at]["user"] == posts[at - 1]["user"] for at in repeats)
    assert all(posts[at]["image"] != posts[at - 1]["image"] for at in repeats)


def test_the_most_frequent_thing_is_far_above_the_median(posts):
    common = {*SCENES, *GENERIC_TAGS}
    tags = [tag for post in posts for tag in canonical_tags(post["tags"]) if not tag.startswith("byuser")]
    counts = sorted(Counter(tag for tag in tags if tag not in common).values())
    assert counts[-1] > 5 * counts[len(counts) // 2]  # of 24 things in a scene the first has 12 times the twelfth


def test_scenes_things_and_generic_tags_are_two_hundred_and_eight(posts):
    tags = {tag for post in posts for tag in canonical_tags(post["tags"]) if not tag.startswith("byuser")}
    assert 200 <= len(tags) <= 208  # 8 scenes of 24 things, 8 generic; 4,000 posts may miss a rare one


def test_tags_are_written_in_several_ways(posts):
    written = {tag for post in posts for tag in post["tags"]}
    assert {"sea", "#sea", "Sea", "#SEA"} <= written


def test_a_few_posts_keep_no_tag(posts):
    assert 1 <= sum(not canonical_tags(post["tags"]) for post in posts) <= 40  # of 4,000
    assert all(post["tags"] for post in posts)


def test_users_post_about_forty_times_and_mostly_from_two_scenes(posts):
    users = {}
    for post in posts:
        users.setdefault(post["user"], []).append(canonical_tags(post["tags"]))
    assert 90 <= len(users) <= 100  # of 4,000 / 40
    shares = []
    for tags in users.values():
        seen = Counter(tag for row in tags for tag in row if tag in SCENES)
        shares.append(sum(n for _, n in seen.most_common(2)) / max(1, seen.total()))
    assert np.mean(shares) > 0.8


def test_users_have_a_tag_of_their_own(posts):
    own = {post["user"]: {t for t in canonical_tags(post["tags"]) if t.startswith("byuser")} for post in posts}
    named = [tags for tags in own.values() if tags]
    assert all(len(tags) == 1 for tags in named)
    assert len(set.union(*named)) == len(named)  # no two users share one
