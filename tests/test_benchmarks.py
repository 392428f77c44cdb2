"""The benchmarks that make studies: what they ask for, that they go on where they stopped, and what they print."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from helpers import growing
from moe_core.settings import Source
from moe_core.study_file import dump_study
from moe_core.threads import cores

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import busy
import curves
import fragmentation
import linked
import seeds


def test_a_link_is_the_same_file_and_leaves_out_what_is_not_finished(tmp_path):
    made = tmp_path / "one" / "trunk" / "abc"
    made.mkdir(parents=True)
    (made / "weights").write_text("w")
    (tmp_path / "one" / "trunk" / ".part-x").mkdir()
    linked.link(tmp_path / "one", tmp_path / "two", ["trunk"])
    assert (tmp_path / "two" / "trunk" / "abc" / "weights").samefile(made / "weights")
    assert [path.name for path in (tmp_path / "two" / "trunk").iterdir()] == ["abc"]
    (made / "weights").unlink()
    linked.link(tmp_path / "one", tmp_path / "two", ["trunk"])  # it has that already
    assert (tmp_path / "two" / "trunk" / "abc" / "weights").read_text() == "w"
    with pytest.raises(FileNotFoundError):
        linked.link(tmp_path / "one", tmp_path / "two", ["splits"])


def test_two_processes_may_link_the_same_at_once(tmp_path, monkeypatch):
    (tmp_path / "one" / "trunk" / "abc").mkdir(parents=True)
    (tmp_path / "one" / "trunk" / "abc" / "weights").write_text("w")
    copy = shutil.copytree

    def the_other_first(*args, **options):
        monkeypatch.undo()
        linked.link(tmp_path / "one", tmp_path / "two", ["trunk"])
        return copy(*args, **options)

    monkeypatch.setattr(shutil, "copytree", the_other_first)
    linked.link(tmp_path / "one", tmp_path / "two", ["trunk"])
    found = [path.relative_to(tmp_path / "two").as_posix() for path in (tmp_path / "two").rglob("*")]
    assert sorted(found) == ["trunk", "trunk/abc", "trunk/abc/weights"]


def test_a_study_of_a_seed_has_it_everywhere_and_the_settings_that_were_said():
    study = seeds.study_of("demo", "synthetic", ["trunk.epochs=50", "source.posts=700", "decoder.mode=frozen"], 3)
    assert (study.trunk.seed, study.expert_training.seed, study.partition.seed) == (3, 3, 3)
    assert (study.trunk.epochs, study.source.posts, study.decoder.mode) == (50, 700, "frozen")
    assert study.source.seed == 0  # the posts stay


@pytest.mark.parametrize("said", ["trunk.lrr=1", "epochs=3", "trunk.epochs"])
def test_a_setting_that_is_none_is_refused(said):
    with pytest.raises(ValueError, match=r"wanted section\.key=value"):
        seeds.study_of("demo", "synthetic", [said], 0)


def test_another_study_at_the_same_place_is_refused(tmp_path):
    (tmp_path / "study.toml").write_text(dump_study(seeds.study_of("demo", "synthetic", [], 0)))
    with pytest.raises(ValueError, match="is another study"):
        seeds.table_of(seeds.study_of("demo", "synthetic", ["trunk.epochs=1"], 0), tmp_path, [])


def table(p_at_1, gain, low):
    measures = dict.fromkeys(seeds.MEASURES, p_at_1)
    pair = {f"{m}_gain": gain for m in seeds.MEASURES} | {f"{m}_gain_ci95": [low, 1.0] for m in seeds.MEASURES}
    return {
        "n": 10,
        "rows": [{"name": name} | measures for name in ("trunk", "mixture_top1")],
        "published_gains": {"trunk": pair},
    }


def test_mean_deviation_and_spread_over_seeds_by_hand():
    found = seeds.summary([table(0.4, 0.01, -0.01), table(0.5, 0.03, 0.01)])
    assert found["rows"]["trunk"]["p_at_1"] == {
        "mean": 0.45,
        "deviation": 0.07071,
        "spread": 0.1,
        "values": [0.4, 0.5],
    }
    assert found["published_less"]["trunk"]["r_at_10"]["above_zero"] == 1
    said = seeds.printed(found)
    assert "| `trunk` | 45.0 ± 7.1 (10.0) | 45.0" in said
    assert "| `trunk` | +2.0 ± 1.4 (2.0), 1 of 2 above 0 |" in said


def test_one_seed_has_no_deviation():
    found = seeds.summary([table(0.4, 0.01, -0.01)])
    assert "| `trunk` | 40.0 (0.0) |" in seeds.printed(found)


def test_posts_that_are_held_out_do_not_count_as_training_posts():
    study = fragmentation.study_of(20_000, 4, 10_000)
    held = study.data.test + study.data.validation
    assert study.source.posts * (1 - held) == pytest.approx(20_000)
    assert (study.trunk.epochs, study.expert_training.epochs) == (12, 8)


@pytest.fixture(scope="module")
def one_cell(tmp_path_factory):
    root = tmp_path_factory.mktemp("fragmentation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fragmentation, "TRUNK_EPOCHS", 0.2)
        patch.setattr(fragmentation, "EXPERT_EPOCHS", 0.1)
        patch.setattr(fragmentation, "VALIDATION", 150)
        return root, fragmentation.measure(root, [700], [2], 200)


def test_a_cell_has_every_row_and_both_differences(one_cell):
    _, cells = one_cell
    (cell,) = cells.values()
    assert set(fragmentation.CONTROLS) | {"trunk", fragmentation.MIXTURE} <= set(cell["rows"])
    for control in fragmentation.CONTROLS:
        pair = cell["mixture_against"][control]
        gain = cell["rows"][fragmentation.MIXTURE]["p_at_1"] - cell["rows"][control]["p_at_1"]
        assert pair["p_at_1_gain"] == pytest.approx(gain, abs=2e-5)
    assert cell["smallest_expert"] > 0


def test_a_cell_that_is_in_the_file_is_not_made_again(one_cell, monkeypatch):
    root, cells = one_cell
    monkeypatch.setattr(fragmentation, "make", None)
    assert fragmentation.measure(root, [700], [2], 200) == json.loads(json.dumps(cells))


def test_a_gain_is_bold_where_its_interval_excludes_zero():
    def cell(posts, experts, gain, low, high):
        pair = {"p_at_1_gain": gain, "p_at_1_gain_ci95": [low, high]}
        rows = {name: {"p_at_1": 0.5} for name in ("trunk", *fragmentation.CONTROLS, fragmentation.MIXTURE)}
        return {
            "posts": posts,
            "training_posts": posts,
            "experts": experts,
            "smallest_expert": 9,
            "trunk_epochs": 6.0,
            "expert_epochs": 4.0,
            "rows": rows,
            "mixture_against": dict.fromkeys(fragmentation.CONTROLS, pair),
        }

    cells = {"a": cell(5000, 2, 0.02, 0.01, 0.03), "b": cell(20000, 2, 0.01, -0.01, 0.03)}
    lines = fragmentation.table_of(cells).splitlines()
    assert "| **+2.0 (+1.0 to +3.0)** |" in lines[2]
    assert "| +1.0 (-1.0 to +3.0) |" in lines[3]
    drawn = fragmentation.plot(cells, "trunk_same_budget")
    assert ">5k<" in drawn
    assert ">K=2<" in drawn


def test_curves_of_a_finished_study(tmp_path, capsys, monkeypatch):
    study = growing.growing_study(tmp_path / "source", source=Source(format="synthetic", posts=300, shards=1))
    growing.make(study, tmp_path, until="partition")
    monkeypatch.setattr(
        "sys.argv", ["curves.py", str(tmp_path / "study.toml"), "--points", "2", "--svg", str(tmp_path / "curves.svg")]
    )
    curves.main()
    lines = capsys.readouterr().out.splitlines()
    networks = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    curves_of = ("trunk", "same budget", "random experts", "experts")
    assert networks == ["network", "---", *(name for name in curves_of for _ in range(3))]
    assert "<svg" in (tmp_path / "curves.svg").read_text()


@pytest.mark.soak
def test_four_ways_of_waiting_are_compared_on_an_idle_machine_and_beside_hogs(capsys, monkeypatch):
    arguments = [
        "--networks",
        "tiny",
        "--rounds",
        "1",
        "--seconds",
        "0",
        "--batch",
        "4",
        "--posts",
        "8",
        "--spins",
        "5",
    ]
    monkeypatch.setattr("sys.argv", ["busy.py", *arguments])
    busy.main()
    said = capsys.readouterr().out
    for state in ("idle", "beside 2 hogs"):
        (line,) = [line for line in said.splitlines() if line.startswith(f"tiny, {state}, images/s: ")]
        ways = line.removeprefix(f"tiny, {state}, images/s: ").split("; ")
        found = [re.fullmatch(r"(.+) [\d,]+ \([\d,]+ a processor second, (\d+) threads\)", way) for way in ways]
        threads = {way[1]: int(way[2]) for way in found}
        assert threads == {"default": cores(), "one": 1, "passive": cores(), "ours": 1, "spins 5": cores()}
    assert len([line for line in said.splitlines() if "ours by the best of the other three" in line]) == 2
    assert said.count("(target 0.97)") == said.count("(target 5)") == 1


def test_ratios_of_the_ways_by_hand():
    class Rates(busy.Trainer):
        def __init__(self, idle, hogs):
            self.threads, self.rates = 1, {"idle": [(idle, 1.0)], "hogs": [(hogs, 1.0), (hogs, 1.0)]}

    found = {"default": Rates(200, 10), "one": Rates(100, 50), "passive": Rates(50, 20), "ours": Rates(198, 60)}
    lines = busy.said_of("tiny", found)
    assert [line.split("(")[0].split()[-1] for line in (lines[1], lines[4], lines[5])] == ["0.990", "1.200", "6.00"]
