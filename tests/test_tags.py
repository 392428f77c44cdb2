import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_core.data.tags import canonical_tag, canonical_tags


@pytest.mark.parametrize("written", ["New York", "#new-york", "newyork", "  NEW_YORK ", "##New.York!"])
def test_spellings_of_one_tag_meet(written):
    assert canonical_tag(written) == "newyork"


@pytest.mark.parametrize("written", ["", "#", " - ", "geo:lat=52.1", "#flickr:user=me", "❤"[:0], "x" * 101])
def test_what_is_no_tag_is_none(written):
    assert canonical_tag(written) is None


@pytest.mark.parametrize(
    ("written", "tag"),
    [
        ("猫", "猫"),
        ("кошка", "кошка"),
        ("👍🏽", "👍"),
        ("❤️", "❤"),
        ("ＦＵＬＬ", "full"),
        ("Straße", "strasse"),
        ("café", "café"),
    ],
)
def test_every_script_stays(written, tag):
    assert canonical_tag(written) == tag


def test_duplicates_after_canonical_form_are_one():
    assert canonical_tags(["Cat", "#cat", "dog", "!"]) == ["cat", "dog"]


@given(st.text(max_size=40))
def test_canonical_form_is_idempotent(text):
    tag = canonical_tag(text)
    assert tag is None or canonical_tag(tag) == tag


@given(st.text(alphabet="abcdefXYZ", min_size=1, max_size=20))
def test_hash_case_and_spacing_do_not_matter(text):
    assert canonical_tag("#" + text.upper()) == canonical_tag(" " + text.lower() + " ")
