import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.data import dropped_table, kept_table
from moe_core.data.counting import TagCounter
from moe_core.data.splits import SPLITS
from moe_core.data.synonyms import plurals, read_stop_tags, read_synonyms
from moe_core.data.vocabulary import Vocabulary, choose_from, load, save
from moe_core.engine.build import build
from moe_core.settings import Data, Source, Study
from moe_core.stages.graph import GRAPH
from moe_core.stages.reading import split_numbers
from moe_core.workspace import open_study

TAGS = pl.List(pl.String)


def chosen(posts, data):
    return choose_from(lambda: [posts], data)


def frame(tags, users=None):
    return pl.DataFrame({"tags": tags, "user": users or [None] * len(tags)}, schema={"tags": TAGS, "user": pl.String})


def counted(tags, users, synonyms=None, limit=1000, batch=1000):
    posts = frame(tags, users)
    with tempfile.TemporaryDirectory() as scratch:
        counter = TagCounter(Path(scratch), synonyms or {}, limit)
        for first in range(0, len(tags), batch):
            counter.add(posts["tags"][first : first + batch], posts["user"][first : first + batch])
        assert counter.posts == len(tags)
        totals = counter.totals()
    return {tag: numbers for tag, *numbers in totals.select("tag", "posts", "users", "most_by_one_user").iter_rows()}


def reasons_of(dropped):
    return dict(dropped.select("tag", "reason").iter_rows())


def file(folder, text, name="words.txt"):
    (folder / name).write_text(text, "utf-8")
    return str(folder / name)


def test_posts_users_and_the_most_of_one_user_are_counted():
    tags = [["cat", "sea"], ["cat"], ["cat"], ["sea"], ["cat"], [], None]
    users = ["ann", "ann", "bob", None, "", "ann", "bob"]
    assert counted(tags, users) == {"cat": [4, 3, 2], "sea": [2, 2, 1]}


def test_nothing_is_counted_of_nothing():
    assert counted([], []) == {}
    assert counted([[], None], ["ann", None]) == {}


def test_a_post_with_two_names_of_a_tag_counts_once():
    tags = [["kitty", "cat"], ["kitty"], ["dog"]]
    assert counted(tags, ["a", "b", None], {"kitty": "cat"}) == {"cat": [2, 2, 1], "dog": [1, 1, 0]}


POSTS = st.lists(
    st.tuples(
        st.lists(st.sampled_from("abcdefg"), unique=True, max_size=4), st.none() | st.sampled_from(["u", "v", "w"])
    ),
    max_size=30,
)


@settings(deadline=None)
@given(POSTS, st.sampled_from([{}, {"a": "b", "c": "z"}]), st.integers(1, 40), st.integers(1, 9))
def test_counts_do_not_depend_on_batches_or_on_what_went_to_files(posts, synonyms, limit, batch):
    named, posts_of, anonymous = defaultdict(lambda: defaultdict(int)), defaultdict(int), defaultdict(int)
    for tags, user in posts:
        for tag in {synonyms.get(tag, tag) for tag in tags}:
            posts_of[tag] += 1
            if user:
                named[tag][user] += 1
            else:
                anonymous[tag] += 1
    wanted = {
        tag: [posts_of[tag], len(named[tag]) + anonymous[tag], max(named[tag].values(), default=0)] for tag in posts_of
    }
    tags, users = [tags for tags, _ in posts], [user for _, user in posts]
    assert counted(tags, users, synonyms, limit, batch) == wanted


def test_pairs_that_do_not_fit_lie_in_files(tmp_path):
    tags, users = [["cat"]] * 100, [f"u{n % 7}" for n in range(100)]
    counter = TagCounter(tmp_path, {}, limit=10)
    counter.add(pl.Series(tags), pl.Series(users))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == 800
    assert counter.totals().rows() == [("cat", 100, 7, 15)]


def test_each_reason_of_leaving(tmp_path):
    tags = [["love", "cat", "spam", "sea"]] * 9 + [
        ["love", "cat", "sea", "spam", "two"],
        ["two", "rare", "own"],
        ["own"],
    ]
    users = ["ann"] * 9 + ["bob", "cid", "cid"]
    posts = frame([*tags, ["cat"]], [*users, "cid"])
    data = Data(
        min_posts_per_tag=2,
        min_users_per_tag=2,
        max_user_share=0.85,
        max_tags=1,
        stop_tags=file(tmp_path, "#LOVE\n\n"),
        synonyms=file(tmp_path, "sea = sea\nocean = sea\n", "same.txt"),
    )
    kept, dropped, synonyms = chosen(posts, data)
    assert kept.rows() == [("cat", 11, 3, 9)]
    assert reasons_of(dropped) == {
        "love": "stop_list",
        "sea": "one_user",  # 9 of 10 posts
        "spam": "one_user",
        "two": "beyond_max_tags",
        "rare": "too_few_posts",
        "own": "too_few_users",
    }
    assert dropped.columns == ["tag", "posts", "users", "most_by_one_user", "reason"]
    assert synonyms == {"sea": "sea", "ocean": "sea"}


def test_a_user_with_fifty_thousand_equal_tags_is_spam():
    posts = frame(
        [["buynow"]] * 50_000 + [["buynow", "cat"]] * 100, ["spammer"] * 50_000 + [f"u{n}" for n in range(100)]
    )
    kept, dropped, _ = chosen(posts, Data(min_users_per_tag=50))
    assert kept["tag"].to_list() == ["cat"]
    assert dropped.rows() == [("buynow", 50_100, 101, 50_000, "one_user")]
    kept, _, _ = chosen(posts, Data(max_user_share=1))
    assert kept["tag"].to_list() == ["buynow", "cat"]


def test_posts_without_users_are_nobodys_spam():
    kept, _, _ = chosen(frame([["cat"]] * 3), Data(min_posts_per_tag=3, min_users_per_tag=3, max_user_share=0.1))
    assert kept.rows() == [("cat", 3, 3, 0)]


def test_equal_counts_are_ordered_by_name():
    kept, _, _ = chosen(frame([["b", "c", "a"], ["c"]]), Data(min_posts_per_tag=1))
    assert kept["tag"].to_list() == ["c", "a", "b"]


def test_a_vocabulary_of_one_users_tags_says_so():
    with pytest.raises(ValueError, match=r"\(one_user 1\): lower data.min_posts_per_tag, or raise data.max_user_share"):
        chosen(frame([["cat"]] * 3, ["ann"] * 3), Data(min_posts_per_tag=2))


def test_no_posts_at_all_is_an_error():
    with pytest.raises(ValueError, match="no training post is left: check the rejects"):
        choose_from(lambda: [], Data())


def test_plurals_join_their_singular_where_it_is_frequent():
    tags = [["cat", "cats"], ["cats"], ["cat"], ["dogs"], ["dogs"], ["dog"], ["paris"], ["paris"], ["cat", "paris"]]
    kept, dropped, synonyms = chosen(frame(tags), Data(min_posts_per_tag=2, plurals=True))
    assert dict(kept.select("tag", "posts").iter_rows()) == {"cat": 4, "paris": 3, "dogs": 2}
    assert (reasons_of(dropped), synonyms) == ({"dog": "too_few_posts"}, {"cats": "cat"})
    kept, _, synonyms = chosen(frame(tags), Data(min_posts_per_tag=2))
    assert dict(kept.select("tag", "posts").iter_rows()) == {"cat": 3, "paris": 3, "cats": 2, "dogs": 2}
    assert synonyms == {}


def test_plurals_by_their_endings():
    there = ["house", "beach", "box", "city", "movie", "glass", "bus", "new", "bu", "猫", "gas", "tenni"]
    many = ["houses", "beaches", "boxes", "cities", "movies", "glasses", "buses", "news", "bus", "猫s", "gas", "tennis"]
    found = plurals(pl.Series(there + many), pl.Series(there), {"news"})
    assert found == {
        "houses": "house",
        "beaches": "beach",
        "boxes": "box",
        "cities": "city",
        "movies": "movie",
        "glasses": "glass",
        "buses": "bus",
    }


def test_a_synonym_line_keeps_a_plural(tmp_path):
    tags = [["new"], ["news"], ["glass"], ["glasses"], ["specs"]]
    lines = "news = news\nspecs = glasses\n"
    kept, _, synonyms = chosen(frame(tags), Data(min_posts_per_tag=1, plurals=True, synonyms=file(tmp_path, lines)))
    assert dict(kept.select("tag", "posts").iter_rows()) == {"glasses": 2, "glass": 1, "new": 1, "news": 1}
    assert synonyms == {"news": "news", "specs": "glasses"}


def test_synonym_chains_are_followed_to_their_end(tmp_path):
    lines = "\ufeff#Kitty = Kitten\nkitten = CAT\n\npuss = kitty\nNew York = newyork\n"
    assert read_synonyms(file(tmp_path, lines), "keep") == {
        "kitty": "cat",
        "kitten": "cat",
        "puss": "cat",
        "newyork": "newyork",
    }


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("a = b\nb = c\n\nc = a\n", r"words.txt, line 4: 'c = a' closes a circle: c = a = b = c: remove one line"),
        ("a = b\nb=a\n", r"words.txt, line 2: 'b=a' closes a circle: b = a = b"),
        ("a = b\na = c\n", r"words.txt, line 2: 'a = c', but an earlier line has a = b: keep one of them"),
        ("a = b\ncat\n", r"words.txt, line 2: 'cat' is not 'written = meant' with a tag on both sides"),
        ("!! = cat\n", r"words.txt, line 1: '!! = cat' is not 'written = meant'"),
    ],
)
def test_mistakes_in_synonyms_are_told_by_their_line(tmp_path, lines, said):
    with pytest.raises(ValueError, match=said):
        read_synonyms(file(tmp_path, lines), "keep")


def test_lists_of_words_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"no file at gone.txt: wanted a text file \(data.stop_tags\)"):
        read_stop_tags("gone.txt", "keep")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"latin is not UTF-8 text \(data.synonyms\)"):
        read_synonyms(str(tmp_path / "latin"), "keep")


def test_lists_of_words_follow_the_accents(tmp_path):
    path = file(tmp_path, "Café\n#LOVE\ncafé\n!\n")
    assert sorted(read_stop_tags(path, "keep")) == ["café", "love"]
    assert sorted(read_stop_tags(path, "fold")) == ["cafe", "love"]
    assert read_stop_tags("", "keep").to_list() == []


def test_a_vocabulary_is_read_back_as_it_was_saved(tmp_path):
    posts = frame([["cat", "kitty"], ["kitty", "rare"], ["dog"]])
    kept, dropped, synonyms = chosen(posts, Data(min_posts_per_tag=1, max_tags=2, synonyms=file(tmp_path, "kitty=cat")))
    save(tmp_path, kept, dropped, synonyms)
    assert load(tmp_path / "hashtags.parquet", tmp_path / "synonyms.parquet") == Vocabulary(
        ["cat", "dog"], {"kitty": "cat"}
    )
    assert pl.read_parquet(tmp_path / "dropped.parquet").rows() == [("rare", 1, 1, 0, "beyond_max_tags")]


def test_rows_of_ids():
    words = Vocabulary(["dog", "cat", "sea"], {"kitty": "cat", "dropped": "gone"})
    tags = pl.Series([["sea", "cat", "kitty"], None, ["what"], [], ["kitty", "dropped", None, "dog"]], dtype=TAGS)
    ids_T, starts_N1 = words.compressed_rows(tags)
    assert (ids_T.tolist(), starts_N1.tolist()) == ([1, 2, 0, 1], [0, 2, 2, 2, 2, 4])
    assert ids_T.dtype == starts_N1.dtype == np.int64


@pytest.mark.parametrize("tags", [[], [None], [[]], [["what"]]])
def test_rows_of_ids_where_there_are_none(tags):
    for words in (Vocabulary(["dog"], {}), Vocabulary([], {})):
        ids_T, starts_N1 = words.compressed_rows(pl.Series(tags, dtype=TAGS))
        assert (ids_T.tolist(), starts_N1.tolist()) == ([], [0] * (len(tags) + 1))


def test_the_stage_counts_training_posts_and_leaves_nothing_else_behind(tmp_path):
    data = Data(image_size=8, min_posts_per_tag=3, max_user_share=0.6)
    context = open_study(Study(source=Source(format="synthetic", posts=120, shards=2), data=data), tmp_path)
    for shard in context.shards:
        build(context, "posts", shard.key)
    build(context, "splits")
    artifact = build(context, "vocabulary").artifact
    said = artifact.metadata
    assert said["training_posts"] == (split_numbers(context) == SPLITS.index("train")).sum() > 80
    assert sorted(p.name for p in artifact.path.glob("[!.]*.parquet")) == [
        "dropped.parquet",
        "hashtags.parquet",
        "synonyms.parquet",
    ]
    dropped = pl.read_parquet(artifact.file("dropped.parquet"))
    assert said["dropped_by_reason"] == dict(dropped["reason"].value_counts().sort("reason").iter_rows())
    assert said["dropped_by_reason"].keys() == {"one_user", "too_few_posts"}
    assert said["kept_examples"][0] == list(
        pl.read_parquet(artifact.file("hashtags.parquet")).select("tag", "posts", "users").row(0)
    )
    assert not list(artifact.path.glob("pairs-*"))


def test_settings_that_change_tags_change_the_versions():
    for setting, stages in {"accents": {"posts", "vocabulary"}, "plurals": {"vocabulary"}}.items():
        changed = Study(data=Data.model_validate({setting: {"accents": "fold", "plurals": True}[setting]}))
        assert {name for name, stage in GRAPH.items() if stage.settings(changed) != stage.settings(Study())} == stages


def test_tags_in_the_ui_are_text_and_not_markup():
    assert kept_table({"kept_examples": [["a|b<c>", 12_000, 7]]}).splitlines()[2:] == [
        "| a&#124;b&#60;c&#62; | 12,000 | 7 |"
    ]
    said = {
        "dropped_by_reason": {"one_user": 2_000},
        "dropped_examples": {"one_user": [["x`", 50_000, 1], ["y", 9, 1]]},
    }
    assert dropped_table(said).splitlines()[2:] == ["| one_user | 2,000 | x&#96; (50,000, 1), y (9, 1) |"]
