"""MODEL_CARD.md: written with each mixture, and by `hardmoe export` with what is known today."""

import json
import re
import shutil

import pytest
from click.testing import CliRunner

from helpers.kills import study
from moe_core.data.takedowns import Takedowns
from moe_core.evaluation.card import Card, Exposure, code, render
from moe_core.maintenance.card import card_today
from moe_core.serving.bundle import Bundle
from moe_core.serving.names import label
from moe_core.settings import Source
from moe_core.stages.mixture.bundle import content_of
from moe_core.stages.mixture.card import source_of
from moe_core.store.hashing import content_hash, file_hash
from moe_core.workspace import open_study
from pipelines.cli.main import main

CHOSEN = {
    "published": {"e000": True, "e001": False},
    "answer": "mixture_top1",
    "router_weight": 0.2,
    "validation_posts": 50,
    "validation_p_at_1": {"mixture_top1": 0.5, "mixture_top1_router": 0.4},
    "validation_cross_entropy": {"mixture_top1": 2.5, "mixture_top1_router": 2.75},
    "validation_gain": {"e000": 0.25, "e001": -0.125},
}
CARD = Card("cats", "1f0c", "", "parquet cats", CHOSEN, {}, {}, {"e000": "11", "e001": "22"}, Exposure(0, 0))


def section(card, title):
    return re.search(rf"## {title}\n\n(.*?)(?=\n## |\Z)", card, re.DOTALL)[1]


def written(context):
    """The card that was written with the mixture."""
    return (context.need("mixture").path / "MODEL_CARD.md").read_text("utf-8")


def test_a_mixture_is_written_with_what_is_known_then(copied):
    card, mixture = written(copied), copied.need("mixture")
    assert card.startswith("# Model card of `tiny`\n")
    assert f"Mixture `{mixture.version}`: a hard mixture of 2 convolutional experts" in card
    assert section(card, "License") == "Not stated (`publish.license` in study.toml).\n"
    splits = copied.need("splits").metadata
    assert f"| posts | {splits['posts']} in 2 shards |" in card
    assert f"| test | {splits['splits']['test']} |" in card
    assert f"{copied.need('vocabulary').metadata['hashtags']:,}; " in section(card, "Data")
    assert "[expert_training]" in section(card, "Settings")
    assert "experts = 2" in section(card, "Settings")
    assert [version in section(card, "Lineage") for version in mixture.inputs.values()] == [True] * 6
    assert "On the " in section(card, "Figures")
    assert "are measured after it is built" in section(card, "Figures")
    assert section(card, "Takedowns") == "When it was built, the study's list of takedowns was empty.\n"


def test_the_card_is_no_part_of_the_result(copied):
    """A mixture's content is that of all its files but the card: an equal mixture with another license is equal."""
    mixture = copied.need("mixture")
    files = {name: sha256 for name, sha256 in mixture.files.items() if name != "MODEL_CARD.md"}
    assert "MODEL_CARD.md" in mixture.files
    assert mixture.content_hash == content_hash(files)
    licensed = study().changed(publish={"license": "CC-BY-4.0"})
    later = open_study(licensed, copied.root)
    for stage in ("mixture", "published", "evaluation"):
        assert later.version(stage) == copied.version(stage)
    assert section(card_today(later, mixture.version), "License") == "`CC-BY-4.0`\n"


def test_content_is_told_from_the_manifest_s_hashes(bundle_folder):
    names = [str(path.relative_to(bundle_folder)) for path in bundle_folder.rglob("*") if path.is_file()]
    assert content_of(bundle_folder) == {name: file_hash(bundle_folder / name) for name in names}


def test_today_s_card_has_figures_with_intervals_and_names(copied):
    mixture = copied.need("mixture")
    label(copied.store.documents, mixture.version, name="spring", note="with | and <b>")
    table = json.loads(copied.need("evaluation").file("table.json").read_text("utf-8"))
    card = card_today(copied, mixture.version)
    figures = section(card, "Figures")
    assert f"On {table['n']} held-out test posts" in figures
    row = next(row for row in table["rows"] if row["name"] == table["published"])
    low, high = row["p_at_1_ci95"]
    assert f"| **{row['title']}** | {row['p_at_1']:.3f} ({low:.3f} to {high:.3f}) |" in figures
    assert "worth its cost:" in figures
    assert ", called `spring`: a hard mixture" in card
    assert "Note: `with \\| and <b>`" in card
    assert re.search(r"Built on \d{4}-\d\d-\d\d; this card was written on \d{4}-\d\d-\d\d\.", card)


def test_today_s_card_says_whether_it_saw_posts_that_were_taken_down_since(copied):
    mixture = copied.need("mixture")
    takedowns = Takedowns.record(copied.store.documents, ["a post", "another"], [])
    takedowns.note("id", "a post", ["0"], [mixture.label])
    takedowns.save(copied.store.documents)
    now = section(card_today(open_study(study(), copied.root), mixture.version), "Takedowns")
    assert "the study's list of takedowns had 2 posts and users." in now
    assert "**Networks of this mixture were trained on posts of 1 of them.**" in now
    assert "a post" not in now


def test_a_card_of_an_expert_s_exposure_counts_it(copied):
    mixture = copied.need("mixture")
    takedowns = Takedowns.record(copied.store.documents, ["x1", "x2", "x3"], [])
    for post, version in (("x1", mixture.inputs["e001"]), ("x2", mixture.inputs["e001"]), ("x3", "of another")):
        takedowns.note("id", post, ["0"], [f"expert:e001 {version}"])
    takedowns.save(copied.store.documents)
    now = section(card_today(open_study(study(), copied.root), mixture.version), "Takedowns")
    assert "trained on posts of 2 of them" in now


def test_export_writes_bundle_and_card_of_today(copied, tmp_path, monkeypatch):
    monkeypatch.delenv("HARDMOE_STUDY", raising=False)
    done = CliRunner().invoke(main, ["export", "--study", str(copied.root), str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["what"] == "bundle"
    assert Bundle(tmp_path / "out").published == Bundle(copied.need("mixture")).published
    card = (tmp_path / "out/MODEL_CARD.md").read_text("utf-8")
    assert card == card_today(copied, copied.version("mixture"))
    done = CliRunner().invoke(main, ["export", "--study", str(copied.root), "--card", str(tmp_path / "cats.md")])
    assert (done.exit_code, done.stdout.endswith("cats.md: the model card, 0.0 MiB\n")) == (0, True), done.output
    assert (tmp_path / "cats.md").read_text("utf-8") == card


def test_a_bundle_without_a_card_has_none_to_write(bundle_folder, tmp_path):
    done = CliRunner().invoke(main, ["export", "--bundle", str(bundle_folder), "--card", str(tmp_path / "c.md")])
    assert (done.exit_code, "has no MODEL_CARD.md: name its study with --study" in done.stderr) == (1, True)
    assert not (tmp_path / "c.md").exists()


def test_what_the_store_no_longer_has_is_left_out(copied):
    for name in ("vocabulary", "trunk"):
        shutil.rmtree(copied.root / name)
    card = card_today(open_study(study(), copied.root), copied.version("mixture"))
    assert "is no longer in the store" in section(card, "Data")
    assert "## Lineage" in card


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat", "`cat`"),
        ("a`b``c", "```a`b``c```"),
        ("`", "`` ` ``"),
        ("a|b", "`a\\|b`"),
        ("<script>alert(1)</script>", "`<script>alert(1)</script>`"),
        ("two\nlines\x1b[0m", "`two\\nlines\\x1b[0m`"),
        ("\u202egnp.exe", "`\\u202egnp.exe`"),
        ("", "`   `"),
    ],
)
def test_text_of_users_is_one_code_span(text, shown):
    assert code(text) == shown


def test_hashtags_settings_and_licenses_cannot_leave_their_places():
    evil = "x`|\n# Title\n<img src=x>```"
    metadata = {
        "vocabulary": {"hashtags": 1, "dropped": 0, "tags_a_post": 1.0, "most_frequent": [evil]},
        "partition": {"sizes": [5, 4], "hashtags": {"e000": [[evil, 1, 2.0]], "e001": []}},
    }
    settings = {"data": {"stop_tags": f"```\n# Title\n{evil}", "image_size": 8}}
    card = render(Card("s", "v", evil, "x", CHOSEN, metadata, settings, {}, Exposure(0, 0), experts=["e000", "e001"]))
    titles = [line for line in card.splitlines() if line.startswith("#")]
    assert titles == [
        "# Model card of `s`",
        *(f"## {name}" for name in ("License", "What it answers", "Data", "Figures", "Experts", "Takedowns")),
        *(f"## {name}" for name in ("Settings", "Lineage")),
    ]
    assert section(card, "License") == "````x`\\|\\n# Title\\n<img src=x>``` ````\n".replace("````x", "```` x")
    fence = section(card, "Settings").splitlines()[2]
    assert fence == "````toml"
    assert "| e001 | 4 | the trunk | -0.125 |  |" in card


def test_many_experts_are_counted_beyond_those_that_are_listed():
    keys = [f"e{n:03d}" for n in range(100)]
    chosen = CHOSEN | {"published": dict.fromkeys(keys, True)}
    card = render(Card("s", "v", "", "x", chosen, {}, {}, dict.fromkeys(keys, "1"), Exposure(0, 0), experts=keys))
    assert "And 60 more." in section(card, "Experts")
    assert "| 60 more experts | |" in section(card, "Lineage")
    assert len(card) < 10_000


def test_a_mixture_that_nobody_measured_says_so():
    chosen = {"published": {"e000": True}, "answer": "mixture_top1", "router_weight": 0.0, "validation_posts": 0}
    card = render(Card("s", "v", "", "x", chosen, {}, {}, {}, Exposure(3, 0), experts=["e000"]))
    assert section(card, "Figures") == "Nothing was measured when it was built: there were no validation posts.\n"
    assert "had 3 posts and users.\nNo network of this mixture was trained on their posts." in card


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (Source(posts=400), "synthetic data, 400 posts"),
        (Source(format="parquet", uri="/home/ann/private/cats.parquet"), "parquet `cats.parquet`"),
        (Source(format="parquet", uri="s3://bucket/cats"), "parquet `s3://bucket/cats`"),
        (Source(format="parquet", uri="https://ann:pw@host/cats?token=t"), "parquet `https://host/cats`"),
    ],
)
def test_a_source_is_named_without_folders_of_a_machine(source, text):
    assert source_of(source) == text
