"""Names and notes of mixtures, and studies beside one another."""

import json
import shutil

import pytest

from helpers.partitioned import hardmoe
from moe_core.errors import BadSetting, CorruptArtifact
from moe_core.serving.names import Label, label, read_labels, version_of
from moe_core.serving.publication import bundle_at
from moe_core.store.documents import FolderDocuments

OLD, NEW = "1f0c8e5a2b7d4c3e9f60", "2a0c8e5a2b7d4c3e9f60"


@pytest.fixture
def documents(tmp_path):
    return FolderDocuments(tmp_path)


def test_a_name_stands_for_its_version_and_what_is_no_name_for_a_beginning(documents):
    assert label(documents, OLD, "holiday", "pictures of July") == Label("holiday", "pictures of July")
    assert label(documents, OLD, note="and of August") == Label("holiday", "and of August")
    assert version_of(documents, "holiday", [OLD, NEW], "mixture") == OLD
    assert version_of(documents, "2a", [OLD, NEW], "mixture") == NEW
    with pytest.raises(BadSetting, match="0 versions of mixture begin with 'holiday'"):
        version_of(documents, "holiday", [NEW], "mixture")  # its mixture was removed


def test_a_name_is_given_once_and_can_be_taken_away(documents):
    label(documents, OLD, "holiday")
    with pytest.raises(BadSetting, match=f"name holiday: mixture {OLD} has it"):
        label(documents, NEW, "holiday")
    assert label(documents, OLD, "") == Label()
    assert label(documents, NEW, "holiday") == Label("holiday")
    assert read_labels(documents) == {NEW: Label("holiday")}


@pytest.mark.parametrize("name", ["1f0c", "cafe", "a b", "-x", "a" * 61, "x\n"])
def test_what_could_be_a_version_or_breaks_a_line_is_no_name(documents, name):
    with pytest.raises(BadSetting, match="wanted up to 60 letters"):
        label(documents, OLD, name)
    assert read_labels(documents) == {}


def test_a_damaged_document_is_said_and_stays(documents, tmp_path):
    (tmp_path / "mixture_names.json").write_text("{}")
    with pytest.raises(CorruptArtifact, match=r"mixture_names\.json is damaged"):
        label(documents, OLD, "holiday")
    assert (tmp_path / "mixture_names.json").read_text() == "{}"


def test_the_command_lists_names_and_other_commands_take_them(copied):
    study = copied.root / "study.toml"
    (mixture,) = copied.store.versions("mixture", None)
    listed = json.loads(hardmoe("mixtures", "--study", study, "--json").output)["mixtures"]
    assert [(line["version"], line["state"], line["name"]) for line in listed] == [(mixture.version, "published", "")]
    assert 0 <= listed[0]["p_at_1"] <= 1
    done = hardmoe("mixtures", "--study", study, "--version", mixture.version[:6], "--name", "first", "--note", "a b")
    assert "published" in done.output
    assert done.output.rstrip().endswith("first  a b")
    decided = json.loads(hardmoe("publish", "--study", study, "--version", "first", "--json").output)
    assert decided["published"] == mixture.version
    assert bundle_at(study, "first") == bundle_at(study, mixture.version) == mixture.path
    assert "--version goes with --name or --note" in hardmoe("mixtures", "--study", study, "--name", "x").output
    assert "0 versions of mixture" in hardmoe("mixtures", "--study", study, "--version", "zz", "--note", "x").output


def test_two_studies_are_compared_in_one_table(copied, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(copied.root, other)
    rows = json.loads(hardmoe("compare", copied.root, other, "--json").output)["studies"]
    assert [row["path"] for row in rows] == [str(copied.root), str(other)]
    assert rows[0]["answer"]["p_at_1"] == rows[1]["answer"]["p_at_1"]
    assert rows[0]["gains"]["trunk_same_budget"] is None, "it has no controls"
    assert rows[0]["gains"]["trunk"]["p_at_1_gain_ci95"][0] <= rows[0]["gains"]["trunk"]["p_at_1_gain"]
    shown = hardmoe("compare", copied.root, other).output
    assert shown.count("not trained") == 2
    assert "no study at" in hardmoe("compare", tmp_path / "none").output
