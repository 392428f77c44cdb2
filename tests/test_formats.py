"""Formats of sources: each is listed once, and everything that needs their list follows from it."""

import ast
from pathlib import Path

import pytest
from click.testing import CliRunner

from moe_core.data.sources.reader import Reader, reader_of
from moe_core.data.sources.registry import FORMATS
from moe_core.errors import BadSetting
from moe_core.study_file import study_of
from pipelines.cli.main import main

PACKAGES = [Path(__file__).parents[1] / name for name in ("moe_core", "assets", "pipelines")]


def test_every_format_has_its_reader():
    assert all(isinstance(reader_of(name), Reader) for name in FORMATS)


def test_the_command_offers_every_format():
    shown = " ".join(CliRunner().invoke(main, ["init", "--help"], env={"COLUMNS": "1000"}).output.split())
    assert f"[{'|'.join(FORMATS)}]" in shown
    assert all(format.what in shown for format in FORMATS.values())


def test_an_unknown_format_is_refused_with_the_known_ones():
    with pytest.raises(BadSetting, match=r"source.format = 'parkett': no such format: wanted one of parquet, arrow"):
        study_of("[source]\nformat = 'parkett'\n", Path("study.toml"))


def test_no_second_list_of_formats():
    for file in (file for package in PACKAGES for file in package.rglob("*.py") if file.name != "registry.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            children = {child.value for child in ast.iter_child_nodes(node) if isinstance(child, ast.Constant)}
            assert len(children & set(FORMATS)) < 3, f"{file}:{node.lineno} lists formats again"
