"""Plots, the report's page and what the UI is told: right numbers, and users' text stays text."""

import hashlib
import re
import xml.etree.ElementTree as ElementTree
from base64 import b64encode

import numpy as np
import pytest

from helpers.report import WICKED, Elements, rendered
from moe_core.data.loading import Labels
from moe_core.evaluation import page, plots
from moe_core.stages.evaluation.score import TagCounts
from moe_core.stages.gate.output import count_hashtags, top_hashtags
from moe_core.text import format_duration

SVG = "{http://www.w3.org/2000/svg}"


def test_ticks_are_round_numbers_inside_the_range():
    assert plots.ticks(0.13, 0.49) == pytest.approx([0.2, 0.3, 0.4])
    assert plots.ticks(0, 4000) == [0, 1000, 2000, 3000, 4000]
    assert plots.ticks(-1, 1) == [-1, -0.5, 0, 0.5, 1]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.25, "0.25"), (12_000, "12k"), (1_500_000, "1.5M"), (-2e9, "-2G"), (999, "999")]
)
def test_numbers_are_shortened(value, text):
    assert plots.short(value) == text


def test_a_long_curve_keeps_its_mean_and_a_short_one_all_its_points():
    points = [(float(n), float(n % 2)) for n in range(1000)]
    thin = plots.thinned(points, 100)
    assert len(thin) == 100
    assert {y for _, y in thin} == {0.5}
    assert thin[0][0] == 4.5
    assert plots.thinned(points[:7], 100) == points[:7]


def test_a_curve_runs_from_corner_to_corner():
    root = ElementTree.fromstring(plots.lines([plots.Line("a<b", [(0, 1), (10, 3)])], "x", "y"))
    first, last = (point.split(",") for point in root.find(f"{SVG}polyline").get("points").split())
    assert first == [f"{plots.LEFT:.1f}", f"{plots.HEIGHT - plots.BOTTOM:.1f}"]
    assert last == [f"{plots.WIDTH - plots.RIGHT:.1f}", f"{plots.TOP:.1f}"]
    assert "a<b" in [text.text for text in root.iter(f"{SVG}text")]


def test_a_single_point_and_equal_values_are_drawn_and_none_is_refused():
    for draw in (lambda p: plots.lines([plots.Line("", p)], "x", "y"), lambda p: plots.glance(p, "loss")):
        ElementTree.fromstring(draw([(5, 2)]))
        ElementTree.fromstring(draw([(0, 2), (1, 2)]))
    ElementTree.fromstring(plots.bars([("e000", 0)], "nothing"))
    with pytest.raises(ValueError, match="no curve has a point"):
        plots.lines([plots.Line("", [])], "x", "y")


def test_bars_go_right_for_gains_and_left_for_losses():
    root = ElementTree.fromstring(plots.bars([("a", 2), ("b", -1)], "gain"))
    up, down = root.iter(f"{SVG}rect")
    assert float(down.get("x")) + float(down.get("width")) == pytest.approx(float(up.get("x")), abs=0.2)
    assert float(up.get("width")) == pytest.approx(2 * float(down.get("width")), abs=0.2)


def test_a_glance_at_a_curve_is_short_enough_for_the_ui():
    points = [(n * 1_234_567.0, 9.87654 / (n + 1)) for n in range(500)]
    assert len(plots.data_uri(plots.glance(points, "learning rate"))) < 950


def test_hashtags_that_set_a_cluster_apart_by_hand():
    """Four posts, two clusters: tag 0 on all, tag 1 on both of the first cluster, tag 2 on one of the second."""
    labels = Labels(np.array([0, 1, 0, 1, 0, 2, 0]), np.array([0, 2, 4, 6, 7]))
    counts_KV = np.zeros((2, 3), np.int32)
    count_hashtags(counts_KV, labels, np.ones(4, bool), np.array([0, 0, 1, 1]))
    found = top_hashtags(["all", "first", "second"], counts_KV)
    # shares: tag 1 is 2 of 7, and 2 of 4 in the first cluster: 1.75 times
    assert found == [[["first", 2, 1.8]], [["second", 1, 2.3], ["all", 2, 1.2]]]


def test_tags_that_an_expert_lifted_and_lowered_by_hand():
    counts = TagCounts(1, 3)
    counts.tags_KV[0] = [10, 10, 10]
    counts.found_KV = {"trunk": np.array([[5, 5, 5]]), "mixture": np.array([[8, 5, 3]])}
    assert counts.changed(0, "mixture", ["up", "same", "down"]) == {
        "lifted": [{"tag": "up", "n": 10, "trunk": 5, "mixture": 8}],
        "lowered": [{"tag": "down", "n": 10, "trunk": 5, "mixture": 3}],
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.04, "0.04 s"),
        (0.97, "1 s"),
        (42, "42 s"),
        (119, "119 s"),
        (120, "2 min"),
        (5400, "90 min"),
        (200_000, "55 h 33 min"),
    ],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_the_page_names_no_other_file_and_allows_one_script_by_its_hash():
    text = rendered()
    seen = Elements(text)
    assert not seen.tags & {"link", "iframe", "object", "base"}
    (script,) = re.findall(r'<script type="module">(.*?)</script>', text, re.DOTALL)
    known = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    links = [value for name, value in seen.attributes if name in ("src", "href")]
    assert links
    assert all(value.startswith("data:image/webp;base64,") for value in links)
    assert not re.search(r"url\(|@import", text)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert ("content", f"{policy}; script-src 'sha256-{known}'") in seen.attributes
    without = Elements(rendered(hashtags=False))
    assert "script" not in without.tags
    assert ("content", policy) in without.attributes


def test_wicked_text_stays_text_on_the_page():
    plain, wicked = Elements(rendered()), Elements(rendered(WICKED))
    assert wicked.tags == plain.tags
    assert not [name for name, _ in wicked.attributes if name.startswith("on")]
    # of both experts three lists; once as a hashtag, twice as what hashtags are mistaken for
    assert [tag for tag in WICKED if wicked.words.count(tag) < 2 * 3 + 3] == []


def test_the_name_of_a_row_may_break_after_an_underscore():
    assert "P@1 of<br>mixture_<wbr>top1</small>" in rendered()


def test_a_gain_is_colored_only_where_its_interval_excludes_zero():
    text = rendered()
    assert '<span class="down">−0.080</span>' in text  # -0.1 to -0.02
    assert '<span class="">+0.250</span>' in text  # -0.1 to 0.6


def test_thresholds_and_calibration_are_on_the_page():
    words = " ".join(Elements(rendered()).words.split())
    assert "are 0.250 away from that (ECE), and 0.125 when they are scaled by the temperature 0.5" in words
    rows = [re.sub(r"<svg.*?</svg>|<[^>]+>", " ", row).split() for row in rendered().split("<tr>")]
    assert ["0.9", "2", "0.950", "0.300", "8", "0.875", "0.800", "to", "0.900", "0.250", "0.200", "to", "0.300"] in rows
    assert ["sea", "20", "0.500", "0.900", "9", "of", "10", "0.875", "7", "of", "8"] in rows
    assert any(row[:3] == ["rare", "3", "none"] for row in rows)


def test_many_experts_are_a_page_too():
    assert "Training posts of each expert" not in rendered(experts=page.SIZES_OF + 1)


def words_of(page):
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def test_bands_and_hashtags_are_on_the_page_and_an_evaluation_without_them_is_a_page_too():
    words = words_of(rendered())
    counts = "2 hashtags on 7 to 9 training posts; 1 of them on 4 test posts"
    assert f"head {counts} mixture_top1 0.500 0.400 to 0.600" in words
    assert "trunk 0.500 0.400 to 0.600 +0.100 : +0.050 to +0.200" in words
    assert f"tail {counts} mixture_top1 trunk" in words, "nothing is measured"
    assert "sea head 9 4 p ≥ 0.700 0.750 0.500 0.625 +0.125 sea 3, sand 1" in words
    assert "sand tail 3 0 top 5 sea 3, sand 1" in words
    older = words_of(rendered(hashtags=False))
    assert "Head, middle and tail" not in older
    assert "Every hashtag" not in older
