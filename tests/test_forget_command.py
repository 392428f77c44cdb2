"""The command of takedowns: what it reads, reports and refuses."""

import json

import pytest

from helpers.command import hardmoe
from helpers.takedown import GONE, two_shards
from moe_core.data.takedowns import lines_of
from moe_core.maintenance.takedown import forget


@pytest.fixture
def ingested(tmp_path):
    return two_shards(tmp_path)


def test_the_command_reports_what_is_left_and_a_file_that_is_not_there(ingested, tmp_path):
    study_file = ingested.root / "study.toml"
    wrong = hardmoe("forget", "--study", study_file, "--ids", tmp_path / "none", check=False)
    assert wrong.returncode == 1
    assert "none is not readable ([Errno 2] No such file" in wrong.stderr
    assert "wanted one id or user a line" in wrong.stderr
    (tmp_path / "ids").write_text(GONE)
    (ingested.root / "dagster").mkdir()
    (ingested.root / "dagster" / "events").write_text(f"{GONE}: no_tags")
    done = hardmoe("forget", "--study", study_file, "--ids", tmp_path / "ids", "--apply", check=False)
    assert done.returncode == 1
    assert "1 places still name what was taken down: dagster/events" in done.stderr


def test_logs_of_dagster_elsewhere_are_searched_too(ingested, tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "events").write_text(f"{GONE}: no_tags")
    done = forget(ingested, ids=[GONE])
    assert done.left == [str(tmp_path / "home" / "events")]
    assert GONE in done.texts
    assert "texts" not in done.as_json()


def test_lines_of_a_file(tmp_path):
    (tmp_path / "ids").write_bytes("\ufeffa\r\n\nb c\na\n\u2028d\n".encode())
    assert lines_of(tmp_path / "ids") == ["a", "b c", "\u2028d"]


def test_ids_with_line_ends_come_from_json(tmp_path):
    odd = ["line\nend", " leading", "carriage\r", "\ufeffmark", "é", "7"]
    (tmp_path / "ids.json").write_text(json.dumps([*odd[:-1], 7, "é"]))
    (tmp_path / "ids.jsonl").write_text("".join(json.dumps(one) + "\n" for one in odd))
    assert lines_of(tmp_path / "ids.json") == lines_of(tmp_path / "ids.jsonl") == odd


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("ids.json", '{"a": 1}', "does not hold strings: wanted one id"),
        ("ids.json", "[true]", "does not hold strings: wanted one id"),
        ("ids.json", "[[1]]", "does not hold strings: wanted one id"),
        ("ids.json", "a\nb", "is not readable .* wanted .*a list of strings"),
        ("ids.json", "[" * 100_000, "is not readable .* wanted .*a list of strings"),
        ("ids.jsonl", "a\n", "is not readable .* wanted .*as a JSON string"),
        ("ids.json", "[]", "is empty: wanted"),
        ("ids.txt", "\n \n", "is empty: wanted"),
    ],
)
def test_a_file_that_names_nobody_or_is_no_json_is_refused(tmp_path, name, text, why):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=why):
        lines_of(tmp_path / name)


def test_nothing_is_removed_without_apply_and_nothing_to_do_is_an_error(ingested, tmp_path):
    command = ("forget", "--study", ingested.root / "study.toml")
    nothing = hardmoe(*command, "--apply", check=False)
    assert (nothing.returncode, nothing.stderr) == (
        1,
        "Error: nothing to take down: name posts with --ids FILE or users with --users FILE\n",
    )
    (tmp_path / "ids").write_text(GONE)
    shown = hardmoe(*command, "--ids", tmp_path / "ids", check=False)
    assert shown.returncode == 1
    assert shown.stderr == "Error: nothing was removed yet; --apply removes it\n"
    assert "1 posts of 1 shards would be removed" in shown.stdout
    assert not (ingested.root / "takedowns.parquet").exists()
    both = hardmoe(*command, "--ids", tmp_path / "ids", "--apply", "--dry-run", check=False)
    assert "--apply and --dry-run exclude each other" in both.stderr
