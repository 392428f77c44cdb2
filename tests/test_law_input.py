"""benchmarks/law.py tells mistakes before it trains: tables and cells that are there, other tables, options."""

import json
import sys
from pathlib import Path

import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import law
import law_table


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the script on a table up to its first training; returns what it stops with."""

    def begun(*_):
        raise SystemExit("begun")

    def run(table, *options):
        if isinstance(table, pl.DataFrame):
            table.write_parquet(tmp_path / "photos.parquet")
            table = tmp_path / "photos.parquet"
        said = ["--source", table, "--root", tmp_path / "law", "--posts", "100", *options]
        monkeypatch.setattr(sys, "argv", ["law.py", *map(str, said)])
        with pytest.raises(SystemExit) as stopped:
            law.main()
        return stopped.value.code

    monkeypatch.setattr(law_table, "VALIDATION", 10)
    monkeypatch.setattr(law, "make", begun)
    return run


def table_with(**columns):
    rows = {
        "id": [f"p{n:03d}" for n in range(200)],
        "image": [b"%d" % n for n in range(200)],
        "tags": [["cat"]] * 200,
        "split": ["test" if n % 10 == 0 else "train" for n in range(200)],
    }
    return pl.DataFrame(rows | columns)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (table_with(id=[f"q{n:03d}" for n in range(200)]), "id, image"),
        (table_with(image=[b"x"] * 200), "image"),
        (table_with(tags=[["dog"]] * 200), "tags"),
        (table_with(source=["a"] * 200), "source"),
        (table_with().head(150), "id, image, tags, split"),
    ],
)
def test_another_table_wants_another_root(run, other, named):
    assert run(table_with()) == "begun"
    assert run(table_with()) == "begun"
    told = run(other)
    assert "law/100.parquet (130 rows) was made from another table" in told
    assert f"that differ in {named}; give another --root" in told


def kept(tmp_path, **fields):
    cell = tmp_path / "law" / "cells" / "100-w8-k16-s0.json"
    cell.parent.mkdir(parents=True, exist_ok=True)
    cell.write_text(json.dumps({"label": "", "epochs": [387.8, 193.9]} | fields))
    return cell


@pytest.mark.parametrize("options", [("--epochs", "8", "5"), ("--set", "trunk.epochs=3")])
@pytest.mark.parametrize("fields", [{}, {"said": []}])  # old and new
def test_a_cell_of_other_epochs_wants_a_label(run, tmp_path, fields, options):
    cell = kept(tmp_path, **fields)
    told = run(table_with(), *options)
    assert f"{cell} is kept with epochs 387.8 + 193.9, settings" in told
    assert "give --label NAME" in told
    assert run(table_with(), *options, "--label", "other") == "begun"


def test_a_cell_of_other_settings_wants_a_label(run, tmp_path):
    cell, more = kept(tmp_path, said=["decoder.refit_lr=1.0"]), ("--experts", "16", "2")
    assert run(table_with(), *more) == (
        f"{cell} is kept with epochs 387.8 + 193.9, settings decoder.refit_lr=1.0; wanted was one with epochs "
        "387.8 + 193.9, settings of the recipe: give --label NAME, or another --root or --cells"
    )
    assert run(table_with(), *more, "--set", "decoder.refit_lr=1.0") == "begun"
    kept(tmp_path)  # an old one does not say its settings
    assert run(table_with(), *more) == "begun"


def test_ids_are_text_and_posts_without_a_source_have_one(run, tmp_path):
    assert run(table_with(id=list(range(200)), source=["a", None] * 100)) == "begun"
    made = pl.read_parquet(tmp_path / "law" / "100.parquet")
    assert made.schema["id"] == pl.String
    assert set(made["source"]) == {"a", "none"}


def test_almost_all_the_posts_that_are_wanted_must_be_there(run):
    assert run(table_with(), "--posts", "200") == "begun"  # 170 are there
    told = run(table_with(), "--posts", "100", "201")
    assert told.startswith("--posts 201: wanted 201 + 10 rows of split train, ")
    assert told.endswith("photos.parquet has 180: lower --posts, or give a larger table")
    assert "has no row of split test" in run(table_with(split=["train"] * 200))


@pytest.mark.parametrize("column", ["id", "image", "tags", "split"])
def test_a_table_without_a_column_is_told(run, column):
    told = run(table_with().drop(column))
    assert f'"{column}"' in told
    assert "wanted a Parquet file with the columns id, image, tags (lists), split" in told


def test_other_tables_are_told(run, tmp_path):
    wanted = "wanted a Parquet file with the columns"
    assert wanted in run(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("text")
    assert wanted in run(tmp_path / "text.parquet")
    assert wanted in run(table_with(tags=["cat"] * 200))
    assert wanted in run(table_with(id=[[n] for n in range(200)]))
    assert "has 200 rows without an id of their own, such as p1: mend them" in run(table_with(id=["p1"] * 200))


@pytest.mark.parametrize("option", ["--posts", "--widths", "--experts"])
@pytest.mark.parametrize("number", ["0", "-3", "many"])
def test_numbers_are_above_zero(run, option, number, capsys):
    assert run(table_with(), option, number) == 2
    assert f"wanted a whole number above 0, got {number}" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["bad", "trunk.nokey=3"])
def test_a_setting_that_is_none_is_told(run, tmp_path, setting):
    assert run(table_with(), "--set", setting).startswith(f"--set {setting}: wanted section.key=value")
    assert "trunk.epochs" in run(table_with(), "--set", "trunk.epochs=-1")
    assert not (tmp_path / "law").exists()


def test_a_plot_wants_a_cell(run, tmp_path):
    assert "no cell without a label in" in run(tmp_path / "none.parquet", "--posts", "--plot", tmp_path / "plots")
