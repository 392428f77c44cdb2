"""What the benchmarks of search compute, by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest

from moe_core.search.build import exact_answers, lists_for, recall_of, write_lists
from moe_core.search.files import VectorFiles
from moe_core.search.lists import Lists, unit

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import hashtag_search
import search


def test_pairs_are_hashtags_that_are_nearly_always_together_each_once():
    tags = [["cat", "felis", "pet"]] * 9 + [["cat"]] + [["dog", "pet"]] * 5
    assert hashtag_search.pairs_of(tags, jaccard=0.9, least=3) == [("felis", "cat")]


def test_average_precision_by_hand():
    right = np.array([True, False, True, False])
    assert hashtag_search.average_precision(np.array([4, 3, 2, 1]), right) == pytest.approx((1 + 2 / 3) / 2)


def test_without_photographs_nothing_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "study"), "--source", str(tmp_path / "none.parquet")])
    hashtag_search.main()
    assert "nothing is measured" in capsys.readouterr().err


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_lists_of_drawn_posts_hold_each_once_and_all_of_them_are_exact(tmp_path, memory):
    posts_ND = search.drawn(3000, 0.5, seed=0)
    assert lists_for(3000, 3001) == 1
    write_lists(tmp_path, lambda: np.split(posts_ND, 3), 3000, search.WIDTH, 30, 0, 1 << 20)
    lists = Lists(VectorFiles(tmp_path.joinpath), memory, 3)
    assert sorted(lists.order_N.tolist()) == list(range(3000))
    assert not lists.is_exact
    np.testing.assert_allclose(lists.rows(np.arange(0, 3000, 100)), unit(posts_ND[::100]), rtol=1e-6)
    queries_QD = unit(search.drawn(20, 0.5, seed=1))
    exact_QT = exact_answers(lambda: [posts_ND], queries_QD)
    assert exact_QT.tolist() == np.argsort(-(queries_QD @ unit(posts_ND).T), axis=1, kind="stable")[:, :20].tolist()
    assert recall_of(lists, queries_QD, exact_QT, probes=30) == 1
    assert recall_of(lists, queries_QD, exact_QT) > 0.8
