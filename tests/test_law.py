"""benchmarks/law.py: parts of a table that lie in each other, hashtags that name a source, gains and their plot."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import law
import law_table

FOLDER = Path(law.__file__).parent


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setattr(law_table, "VALIDATION", 10)
    rows = [
        {"id": f"p{n:03d}", "image": b"", "tags": ["cat"], "split": "test" if n % 10 == 0 else "train"}
        for n in range(200)
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "all.parquet")
    return tmp_path / "all.parquet"


def test_fewer_posts_are_a_part_of_more_and_are_judged_by_the_same(table, tmp_path):
    parts = []
    for posts in (50, 100):
        law_table.table_of(table, posts, tmp_path / f"{posts}.parquet")
        part = pl.read_parquet(tmp_path / f"{posts}.parquet")
        parts.append({split: set(part.filter(pl.col("split") == split)["id"]) for split in part["split"].unique()})
    assert [len(part["train"]) for part in parts] == [50, 100]
    assert parts[0]["train"] < parts[1]["train"]
    assert parts[0]["validation"] == parts[1]["validation"]
    assert len(parts[0]["validation"]) == 10
    assert len(parts[0]["test"]) == len(parts[1]["test"]) == 20
    assert not parts[1]["train"] & (parts[1]["validation"] | parts[1]["test"])


def test_a_hashtag_names_a_source_that_always_has_it_and_alone():
    tags = {
        "a": [["sign", "red"], ["sign", "blue"]],
        "b": [["house", "red"], ["blue"]],
        "c": [["cat"], ["cat", "sign2"]],
    }
    rows = [{"source": s, "tags": t, "split": "train"} for s, some in tags.items() for t in some for _ in range(10)]
    bundle = SimpleNamespace(hashtags=["red", "cat", "sign", "blue", "house"])
    assert law.naming_tags(None, bundle, pl.DataFrame(rows)) == [1, 2]
    assert law.naming_tags(None, bundle, pl.DataFrame(rows).drop("source")) == []


def test_gains_are_of_posts_that_can_be_judged():
    found = {
        "mixture_top1_router": np.array([1, 1, 0, np.nan, 1.0]),
        "trunk_same_budget": np.array([1, 0, 0, np.nan, 0.0]),
    }
    told = law.summary("mixture_top1_router", found, np.array([True, True, True, True, False]))
    assert told["n"] == 3
    assert told["p_at_1"] == {"mixture_top1_router": pytest.approx(2 / 3, abs=1e-5), "trunk_same_budget": 0.33333}
    assert told["less"]["trunk_same_budget"]["gain"] == pytest.approx(1 / 3, abs=1e-5)


def test_a_mixture_without_the_router_meets_random_experts_without_it():
    found = {"mixture_top1": np.ones(4), "random_partition": np.zeros(4), "random_partition_router": np.ones(4)}
    told = law.summary("mixture_top1", found, np.ones(4, bool))
    assert told["less"]["random_partition_router"]["gain"] == 1


def test_cells_are_a_table_and_a_line_for_each_width():
    def cell(width, experts, gain):
        pair = {"gain": gain, "gain_ci95": [gain - 0.01, gain + 0.01]}
        about = {"width": width, "label": "", "experts": experts, "seed": 0, "epochs": [8.0, 4.0]}
        scores = {"published": "mixture_top1", "p_at_1": {"mixture_top1": 0.5}}
        return about | scores | {"training_posts": 64_000, "less": dict.fromkeys(law.LESS[:3], pair)}

    cells = [cell(4, 8, 0.02), cell(8, 8, -0.01), cell(8, 16, 0.03)]
    lines = law.printed(cells).splitlines()
    assert len(lines) == 5
    assert "| 8 | 64,000 | 8 + 4 | 16 | 4,000 | 0 | 50.0 | +3.0 (+2.0 to +4.0) |" in lines[-1]
    drawn = law.plot(cells, "trunk_same_budget")
    assert [f">w={width}, K={experts}<" in drawn for width, experts in ((4, 8), (8, 8), (8, 16))] == [True, False, True]
    assert drawn.count('stroke-opacity="0.3"') == 1  # from 8 to 16 experts of width 8
    assert ">8k<" in drawn


def test_cells_are_made_by_the_script_of_a_gpu_day_and_once(tmp_path):
    """The whole benchmark, small, on the CPU."""
    drawn = np.random.default_rng(0)
    colors = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200), "grey": (120, 120, 120)}
    rows = []
    for number in range(law_table.VALIDATION + 2000):
        tag, image = list(colors)[number % 4], io.BytesIO()
        pixels = np.clip(drawn.normal(colors[tag], 60, (8, 8, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(image, "PNG")
        split, source = "test" if number % 10 == 0 else "train", ("a", None)[number // 4 % 2]
        rows.append({"id": number, "image": image.getvalue(), "tags": [tag], "split": split, "source": source})
    pl.DataFrame(rows).write_parquet(tmp_path / "photos.parquet")
    graph = tmp_path / "graph"
    graph.mkdir()
    (graph / ".ready").touch()  # the packages are here
    (tmp_path / "site" / "faiss").mkdir(parents=True)
    options = ["--posts", "600", "--widths", "4", "--experts", "2", "--seeds", "0", "--epochs", "0.5", "0.2"]
    command = ["bash", FOLDER / "gpu" / "g_law.sh", "300", tmp_path / "photos.parquet", *options]
    variables = {"OUT": str(tmp_path), "GRAPH": str(graph), "SITE": str(tmp_path / "site")}
    variables["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for _ in range(2):
        done = subprocess.run(command, cwd=FOLDER.parent, env=os.environ | variables, capture_output=True, text=True)
        assert "law: exit code 0" in done.stdout, done.stdout + done.stderr
    log = (tmp_path / "law.txt").read_text()
    assert log.count("600-w4-s0  dense_same_cost") == 1  # not again by the second
    (cell,) = (tmp_path / "law-cells").iterdir()
    found = json.loads(cell.read_text())
    assert 550 < found["training_posts"] <= 600  # less near-duplicates
    assert found["naming"] == found["said"] == []
    assert set(found["by_source"]) == {"a", "none"}
    assert set(found["less"]) == {*law.LESS[:3], "trunk"}
    assert found["p_at_1"]["trunk"] > 0.4  # of four colors
