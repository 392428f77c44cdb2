import unicodedata
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.canonical import canonical_tag, canonical_tags
from moe_core.data.captions import hashtags_of_text
from moe_core.data.tags import (
    MAX_TAG_CHARACTERS,
    Spellings,
    as_lists,
    canonical,
    canonical_lists,
    flattened,
)

SHARED = Path(__file__).parents[2] / "shared" / "data"
ACCENTS = st.sampled_from(["keep", "fold"])
TRICKY = "aßẞſςΣσİııͅᾳΐﬁǅŉé́̈ꭰᎠᲀй゙かが한ᄒ्कि١#＃ ﾞ＿-.:=\u200d\u200c\ufe0f\u034f\u1160\u3164👍🏽❤1⃣"
TEXT = st.text(max_size=12) | st.text(alphabet=TRICKY, max_size=12)


def every(tags, accents="keep"):
    return pl.DataFrame({"tag": pl.Series(tags, dtype=pl.String)}).select(canonical(pl.col("tag"), accents))["tag"]


def lists(posts, accents="keep"):
    return canonical_lists(pl.Series("written", posts, pl.List(pl.String)), accents).to_list()


def captions(*texts):
    table = pl.DataFrame({"caption": pl.Series(texts, dtype=pl.String)})
    return table.select(hashtags_of_text(pl.col("caption")))["caption"].to_list()


@pytest.mark.parametrize(
    "written", ["New York", "#new-york", "newyork", "  NEW_YORK ", "##New.York!", "＃Ｎｅｗ　York"]
)
def test_spellings_of_one_tag_meet(written):
    assert canonical_tag(written) == "newyork"


@pytest.mark.parametrize("written", ["", "#", " - ", ":)", "#️⃣", "\u3164", "\u0301", "\ufffd", "x" * 101])
def test_what_is_no_tag_is_none(written):
    assert canonical_tag(written) is None


@pytest.mark.parametrize(
    "written",
    [
        "geo:lat=52.1",
        "#flickr:user=me",
        " ##GEO:Lat = 1",
        "geo: lat=",
        "a_1:b2=c:d=e",
        "ｇｅｏ：ｌａｔ＝1",
        "geo:\u200blat=1\n2",
    ],
)
def test_machine_tags_are_none(written):
    assert canonical_tag(written) is None


@pytest.mark.parametrize(("written", "tag"), [("12:30=late", "1230late"), ("a=b:c", "abc"), ("кот:a=b", "котab")])
def test_what_only_looks_like_a_machine_tag_stays(written, tag):
    assert canonical_tag(written) == tag


@pytest.mark.parametrize(
    ("written", "tag"),
    [
        ("猫の日", "猫の日"),
        ("かﾞ", "が"),  # a half-width voicing mark composes
        ("Кошка", "кошка"),
        ("قِطّة", "قِطّة"),
        ("می‌خواهم", "میخواهم"),  # written with a zero-width non-joiner
        ("हिन्दी", "हिन्दी"),
        ("ภาษาไทย", "ภาษาไทย"),
        ("한국", "한국"),
        ("ΣΊΣΥΦΟΣ", "σίσυφοσ"),
        ("Ὀδυσσεύς", "ὀδυσσεύσ"),
        ("ᾳ", "αι"),
        ("ＦＵＬＬ", "full"),
        ("Straße", "strasse"),
        ("STRAẞE", "strasse"),
        ("ﬁsh", "fish"),
        ("İzmir", "i̇zmir"),  # full case folding keeps the dot of the Turkish capital
        ("cafe\u0301", "café"),
        ("café", "café"),
        ("ᲀ", "в"),
        ("ꭰ", "Ꭰ"),
        ("①", "1"),
        ("re´sume", "resume"),  # the accent of a lone acute falls on no letter
    ],
)
def test_every_script_stays(written, tag):
    assert canonical_tag(written) == tag


@pytest.mark.parametrize(
    ("written", "tag"),
    [("👍🏽", "👍"), ("❤️", "❤"), ("👨‍👩‍👧", "👨👩👧"), ("🏃🏿‍♀️", "🏃♀"), ("1️⃣", "1⃣"), ("🇫🇷", "🇫🇷"), ("I❤️NY", "i❤ny")],
)
def test_emoji_stay_without_their_modifiers(written, tag):
    assert canonical_tag(written) == tag


@pytest.mark.parametrize(
    ("written", "tag"),
    [
        ("Café", "cafe"),
        ("İzmir", "izmir"),
        ("Việt Nam", "vietnam"),
        ("Ἀθῆναι", "αθηναι"),
        ("чай ёж", "чаиеж"),
        ("ø", "ø"),  # a letter of its own: nothing to take off
        ("が", "が"),
        ("हिन्दी", "हिन्दी"),
        ("قِطّة", "قِطّة"),
        ("ภาษาไทย", "ภาษาไทย"),
        ("한국", "한국"),
        ("1️⃣", "1⃣"),
    ],
)
def test_folding_takes_accents_off_latin_greek_and_cyrillic_only(written, tag):
    assert canonical_tag(written, "fold") == tag


def test_the_longest_tag_is_counted_after_what_goes():
    assert canonical_tag("- " * 5000 + "x" * MAX_TAG_CHARACTERS) == "x" * MAX_TAG_CHARACTERS
    assert canonical_tag("ß" * 51) is None


def test_every_single_character_is_folded_as_python_folds_it():
    letters = [c for c in map(chr, range(0x110000)) if unicodedata.category(c)[0] in "LN"]
    wanted = [unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", c).casefold()) for c in letters]
    found = every(letters)
    # Hangul fillers are letters that nobody sees, and some letters are compatible with brackets or marks around them
    other = {c: (w, f) for c, w, f in zip(letters, wanted, found, strict=True) if f != w}
    plain = {c: pair for c, pair in other.items() if all(unicodedata.category(x)[0] in "LN" for x in pair[0])}
    assert set(plain) <= set("\u115f\u1160\u3164\uffa0")


def test_a_canonical_form_is_its_own():
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for accents in ("keep", "fold"):
        once = every(characters, accents)
        assert every(once.to_list(), accents).equals(once)


@settings(deadline=None)  # the first expression of a process loads polars
@given(TEXT, ACCENTS)
def test_canonical_form_is_idempotent(text, accents):
    tag = canonical_tag(text, accents)
    assert tag is None or (tag and canonical_tag(tag, accents) == tag)


@settings(deadline=None)
@given(TEXT, ACCENTS)
def test_a_hash_and_spaces_around_do_not_matter(text, accents):
    tag = canonical_tag(text, accents)
    assert {canonical_tag(f"{before}{text}{after}", accents) for before in ("", "#", " # ") for after in ("", " ")} == {
        tag
    }


@settings(deadline=None)
@given(TEXT, ACCENTS)
def test_case_does_not_matter(text, accents):
    text = unicodedata.normalize("NFKD", text)  # upper case makes a letter of the mark U+0345
    if "ı" not in text.lower():  # upper case writes the dotless i of Turkish with the same letter as i
        assert canonical_tag(text.upper(), accents) == canonical_tag(text.lower(), accents)


@settings(deadline=None)
@given(st.lists(st.text(alphabet="abXY猫é", min_size=1, max_size=4), max_size=4), st.sampled_from(" _-.\t\u3000"))
def test_spaces_between_words_do_not_matter(words, space):
    assert canonical_tag(space.join(words)) == canonical_tag("".join(words))


@settings(deadline=None)
@given(st.lists(st.none() | st.lists(st.none() | TEXT, max_size=5), max_size=5), ACCENTS)
def test_columns_and_single_tags_agree(posts, accents):
    wanted = [canonical_tags([tag for tag in post or () if tag is not None], accents) for post in posts]
    assert lists(posts, accents) == wanted


def test_each_post_keeps_its_tags_once_in_their_order():
    posts = [["Dog", "#cat", "dog", None, "!", "cat"], [], None, ["geo:lat=1"], ["猫", "x" * 101, "cat"]]
    assert lists(posts) == [["dog", "cat"], [], [], [], ["猫", "cat"]]


@pytest.mark.parametrize("posts", [[], [None], [[]], [[None]], [None, [], [None, "!"]]])
def test_posts_without_tags_have_empty_lists(posts):
    assert lists(posts) == [[] for _ in posts]
    assert canonical_lists(pl.Series("written", posts)).dtype == pl.List(pl.String)


def test_a_slice_of_a_column_is_as_the_column():
    column = pl.Series([["A"], None, ["b", "B"], ["c"]])
    assert canonical_lists(column[1:3]).to_list() == [[], ["b"]]


def test_a_million_tags_in_one_post():
    (first, second) = lists([[f"Tag {n % 500_000}" for n in range(1_000_000)], ["- " * 5000 + "x" * 10_000, "B " * 50]])
    assert (len(first), first[:2], first[-1]) == (500_000, ["tag0", "tag1"], "tag499999")
    assert second == ["b" * 50]


def test_hashtags_of_captions():
    assert captions(
        "#sun & #Sea, (#sky) #sun",
        "#a#b ##c",
        "C# C#7 it&#39;s page#part http://x.org/#top a_#b",
        "#猫の日 ＃日本 #кошка_1 #हिन्दी #می‌خواهم #col·lecció",
        "#I❤️NY! #👍🏽 #👨‍👩‍👧",
        "# #! no tag",
        "",
        None,
    ) == [
        ["sun", "Sea", "sky", "sun"],
        ["a", "b", "c"],
        [],
        ["猫の日", "日本", "кошка_1", "हिन्दी", "می‌خواهم", "col·lecció"],
        ["I❤️NY", "👍🏽", "👨‍👩‍👧"],
        [],
        [],
        [],
    ]


def test_spellings_keep_their_codes():
    spellings = Spellings()
    assert spellings.codes(pl.Series(["b", None, "a", "b"])).to_list() == [0, None, 1, 0]
    assert spellings.codes(pl.Series(["c", "a"])).to_list() == [2, 1]
    assert spellings.words().to_list() == ["b", "a", "c"]
    assert spellings.words(first=2).to_list() == ["c"]
    assert Spellings().words().to_list() == []


def test_lists_come_back_from_their_flat_form():
    starts_N1, values = flattened(pl.Series([["a", None], None, [], ["b"]]))
    assert (starts_N1.tolist(), values.to_list()) == ([0, 2, 2, 2, 3], ["a", None, "b"])
    assert as_lists(starts_N1, values).to_list() == [["a", None], [], [], ["b"]]


def shared(name, *columns):
    if not (SHARED / name).is_file():
        pytest.skip(f"no {name} at {SHARED}: the data are not part of the repository")
    return pl.read_parquet(SHARED / name, columns=list(columns))


def test_real_hashtags_are_canonical_as_written_and_as_captioned():
    table = shared("harrison_hashtags.parquet", "raw_tags", "caption")
    assert canonical_lists(table["raw_tags"]).equals(table["raw_tags"])
    assert table.select(hashtags_of_text(pl.col("caption")))["caption"].to_list() == table["raw_tags"].to_list()


def test_keywords_of_emoji_are_as_their_independent_cleaning_but_for_symbols():
    # `tags` of that file: NFKD, accents dropped, lower case, letters and digits only; ours keep symbols such as emoji
    table = shared("emoji.parquet", "raw_tags", "tags")
    ours = canonical_lists(table["raw_tags"], "fold")
    assert not (ours.list.len() == 0).any()
    plain = ours.list.eval(pl.element().str.replace_all(r"\p{So}", "").filter(pl.element() != "")).to_list()
    other = [
        (a, b)
        for a, b in zip(map(dict.fromkeys, plain), map(dict.fromkeys, table["tags"].to_list()), strict=True)
        if (a.keys() - {""}) != b.keys()
    ]
    assert other == []
