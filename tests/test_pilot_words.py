"""What a pilot found, in words, on the page of the report and in Dagster's UI."""

import pytest

from helpers.report import WICKED, Elements, rendered
from moe_core.evaluation import pilot


def row(experts, low, high, doubt="posts"):
    parts = dict.fromkeys(("posts", "clusters", "seeds", "fit", "form"), 0.001) | {doubt: 0.02}
    return {
        "experts": experts,
        "clusters": 3,
        "validation_posts": 100,
        "gains": [-0.01, 0.0, 0.01],
        "curves": {"logarithm": [-0.01, 0.01, 0.03], "root": [-0.01, 0.01, 0.02]},
        "over_training_on": [-0.02, -0.01, 0.0],
        "gain": (low + high) / 2,
        "gain_ci95": [low, high],
        "above_zero": 1.0 if low > 0 else 0.0 if high < 0 else 0.713,
        "parts": parts,
    }


def found(*rows, chosen=None, why="too few posts"):
    cost = {"images": 1000, "device_hours": 2.0, "hours": 0.5, "bytes": 3 << 20}
    return {
        "measure": "p_at_1",
        "shares": [0.0625, 0.125, 0.25],
        "curve_shares": [0.0625, 0.25, 1.0],
        "training_posts": 10_000,
        "validation_posts": 1000,
        "left_out": {"32": why},
        "chosen": chosen,
        "training_on": {"gains": [0.0, 0.01, 0.02], "curves": {"logarithm": [0.0, 0.02, 0.04]}},
        "rows": list(rows),
        "others": {},
        "costs": {"devices": 4, "training_on": cost, "experts": {str(each["experts"]): cost for each in rows}},
        "pilot": {"images": 900, "seconds": 60.0, "budgets": 0.9},
    }


@pytest.mark.parametrize(
    ("rows", "chosen", "words"),
    [
        ([row(4, 0.01, 0.03), row(8, 0.02, 0.05)], 8, "K = 8: it would gain +0.035 (+0.020 to +0.050) over training"),
        ([row(4, -0.01, 0.03)], 4, "K = 4: it would gain +0.010 (-0.010 to +0.030) over training the trunk on for the"),
        ([row(4, -0.01, 0.03)], 4, "The pilot is not sure: 71 of 100 resamples lie above zero; more validation"),
        ([row(4, -0.03, 0.01, "clusters")], None, "no K is estimated to gain. Nearest is K = 4, -0.010 (-0.030 to"),
        ([row(4, -0.03, 0.01, "clusters")], None, "71 of 100 resamples lie above zero; experts of more clusters"),
        (
            [row(4, -0.05, -0.03), row(8, -0.03, -0.01)],
            None,
            "below zero with any K, least with K = 8, -0.020 (-0.03",
        ),
        (
            [row(4, -0.05, 0.02), row(8, -0.03, -0.01)],
            None,
            "Nearest is K = 8, -0.020 (-0.030 to -0.010), which lies below",
        ),
    ],
)
def test_the_choice_is_told_plainly(rows, chosen, words):
    told = pilot.choice(found(*rows, chosen=chosen))
    assert words in told
    assert told.startswith("K = " if chosen else "training the trunk on: ")


def test_each_number_of_experts_has_its_interval_whether_zero_is_in_it_and_its_cost():
    onward, *rows = pilot.rows_of(found(row(4, -0.01, 0.03), row(8, 0.02, 0.05), row(16, -0.3, -0.1), chosen=8))
    assert onward == ("training on", "", "", "", "+0.040", "2 h 0 min", "30 min", "3.0 MiB")
    assert rows[0] == ("4", "+0.010", "-0.010 to +0.030", "undecided: 71 of 100 above zero", "+0.025", *onward[5:])
    assert [cells[3] for cells in rows[1:]] == ["gains", "loses"]
    assert {len(cells) for cells in (onward, *rows)} == {len(pilot.HEAD)}


def test_the_notes_name_every_doubt_and_what_was_left_out():
    notes = list(pilot.notes(found(row(4, -0.01, 0.03), chosen=None)))
    assert "The pilot took 60 s of training, 90 % of the images of one mixture's experts" in notes[0]
    assert notes[1].endswith("would give: posts 0.020, clusters 0.001, seeds 0.001, fit 0.001, form 0.001")
    assert notes[2].startswith("Gain over the trunk: of training on by all validation posts")
    assert notes[3] == "K = 32 was left out: too few posts"


def test_the_plot_has_a_color_for_each_number_of_experts_and_both_forms_of_the_law():
    svg = pilot.plot(found(row(4, -0.01, 0.03), row(8, 0.02, 0.05), chosen=8))
    assert svg.count("<polyline") == (2 + 1) + (2 + 1) + (1 + 1)
    assert all(f">{name}<" in svg for name in ("K=4", "K=8", "training on", "0.0625", "1"))


@pytest.mark.parametrize("text", WICKED)
def test_wicked_text_stays_text_on_the_page(text):
    result = found(row(4, -0.01, 0.03), chosen=None, why=text)
    plain, wicked = (Elements(page_with(r)) for r in (found(row(4, -0.01, 0.03), chosen=None), result))
    assert wicked.tags == plain.tags
    assert not [name for name, _ in wicked.attributes if name.startswith("on")]
    assert f"K = 32 was left out: {text}" in wicked.words


def page_with(result):
    return rendered(pilot=result)


def test_the_page_has_a_pilot_only_where_there_was_one():
    assert "What the pilot said" not in rendered()
    words = Elements(page_with(found(row(4, 0.02, 0.03), chosen=4))).words
    assert "What the pilot said" in words
    assert "Choice: K = 4: it would gain +0.025 (+0.020 to +0.030) over training the trunk on" in words
