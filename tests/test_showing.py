"""What the assets tell Dagster, in processes of their own: `assets` belongs to one study a process."""

import json
import os
import subprocess
import sys

import dagster as dg
import pytest

from helpers.plain import make_plainly
from moe_core.recipes import demo
from moe_core.settings import Data, Network, Partition, Pilot, Source, Training
from moe_core.stages.graph import GRAPH
from moe_core.study_file import dump_study

CELLS = """
import json, os, sys
from types import SimpleNamespace
from assets.mixture import who_answers
from assets.showing import bar, cell, look, numbers, table
said = json.load(sys.stdin)
links = []
for address in ("", "javascript:alert(1)", "http://127.0.0.1:8000/"):
    os.environ["HARDMOE_SERVE_URL"] = address
    links.append([link.value for link in look("posts?expert=e001").values()])
judged = {"validation_gain": {"e000": -0.0123}, "published": {"e000": False, "e001": True}}
mixture = SimpleNamespace(metadata=judged)
print(json.dumps({
    "cells": [cell(text) for text in said],
    "short": table(("tag",), [(said[0],)]).value,
    "long": [record.data["tag"] for record in table(("tag",), [(said[0],)] * 50).records],
    "answers": [who_answers(mixture, key)["its images are answered by"] for key in ("e000", "e001")],
    "links": links,
    "bars": [bar(0, 9), bar(1, 900), bar(9, 9)],
    "numbers": numbers({"step": 10, "steps": 40, "images_per_second": 100.0, "images_seen": 320, "note": "x"}),
}))
"""


@pytest.fixture(scope="module")
def told():
    texts = [
        "<b>|",
        "](javascript:x)",
        "snake_case",
        "_word_",
        "www.a.b",
        "a\n#b",
        "x‮y",
        "naïve, 1.5",
        "__x__",
        "http://x.y",
        "a@b.c",
    ]
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
    command = [sys.executable, "-c", CELLS]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout)


def test_users_text_has_no_mark_that_markdown_reads(told):
    assert told["cells"] == [
        "&#60;b&#62;&#124;",
        "&#93;&#40;javascript&#58;x&#41;",
        "snake_case",
        "&#95;word&#95;",
        "www\u2060.a.b",
        "a &#35;b",
        "x&#92;u202ey",
        "naïve&#44; 1.5",
        "&#95;&#95;x&#95;&#95;",
        "http&#58;&#47;&#47;\u2060x.y",
        "a&#64;\u2060b.c",
    ]


def test_a_table_too_long_for_the_ui_to_show_as_markdown_is_one_of_dagsters(told):
    assert told["short"] == "| tag |\n| --- |\n| &#60;b&#62;&#124; |"
    assert told["long"] == ["<b>|"] * 50  # which shows text as text


def test_bars_of_text(told):
    assert told["bars"] == ["", "▇", "▇" * 12]


def test_assets_link_to_the_page_of_serve_where_its_address_is_known(told):
    assert told["links"] == [[], [], ["http://127.0.0.1:8000/#/posts?expert=e001"]]


def test_progress_says_how_much_is_done_and_what_is_left(told):
    """A step has 32 images; 30 steps are left: 960 images at 100 a second."""
    assert told["numbers"]["percent done"] == 25
    assert told["numbers"]["seconds left"] == 9.6
    assert told["numbers"]["images per second"] == 100
    assert "note" not in told["numbers"]


WORK = """
import sys
import dagster as dg
from dagster._core.utils import make_new_run_id
from pathlib import Path
from assets.study import root, study
from moe_core.workspace import open_study
from moe_core.stages.graph import GRAPH
from pipelines.instance.home import prepare_home
from assets.study import project_keys
from pipelines.run.worker import materialize
from pipelines.run.task import Task
context = open_study(study(), root())
prepare_home(context.root, 1)
with dg.DagsterInstance.get() as instance:
    project_keys(instance, study().name, [s.key for s in context.shards], context.experts)
    for name, stage in context.planner.graph.items():
        if not stage.control:
            for key in context.planner.keys(name):
                error = materialize(Task(name, key), make_new_run_id(), instance).error
                assert not error, (name, key, error)
"""


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """Materializations and observations of each asset partition of a tiny study, by (asset, key): by Dagster from what
    the store has already."""
    folder = tmp_path_factory.mktemp("showing")
    training = Training(epochs=2, batch_size=32, lr=0.2, flip=False, crop=1)
    study = demo().model_copy(
        update={
            "source": Source(format="synthetic", posts=700, shards=1),
            "data": Data(image_size=16, min_posts_per_tag=5, test=0.2, validation=0.1),
            "network": Network(widths=(4,), depths=(1,), embedding=8),
            "trunk": training,
            "expert_training": training.model_copy(update={"batch_size": 8, "epochs": 8.0}),
            "partition": Partition(experts=2, pca=4),
            "pilot": Pilot(experts=(2,), share=0.5),
            "evaluation": demo().evaluation.model_copy(update={"controls": False, "bootstrap": 50}),
        }
    )
    (folder / "study.toml").write_text(dump_study(study), "utf-8")
    make_plainly(folder / "study.toml")
    environment = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME"}
    environment |= {"HARDMOE_STUDY": str(folder / "study.toml")}
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    with dg.DagsterInstance.from_config(str(folder / "dagster")) as instance:
        for name in (*GRAPH, "expert_shard"):
            records = [
                *instance.fetch_materializations(dg.AssetKey(name), limit=50).records,
                *instance.fetch_observations(dg.AssetKey(name), limit=50).records,
            ]
            for record in records:
                event = record.asset_materialization or record.event_log_entry.asset_observation
                found.setdefault((name, event.partition), []).append(event)
    return found


@pytest.fixture(scope="module")
def metadata(events):
    """All that was shown of each asset partition, by (asset, key)."""
    return {place: {k: v for event in found for k, v in event.metadata.items()} for place, found in events.items()}


def test_no_asset_shows_raw_json(metadata):
    raw = {
        (place, name)
        for place, said in metadata.items()
        for name, value in said.items()
        if isinstance(value, dg.JsonMetadataValue)
    }
    assert raw == set()
    made = {name for name, stage in GRAPH.items() if not stage.control and stage.when(demo())}
    assert {place[0] for place in metadata} == made | {"expert_shard"}


def test_an_evaluation_shows_first_whether_the_mixture_is_better(events):
    materialized = next(e for e in events["evaluation", None] if isinstance(e, dg.AssetMaterialization))
    names = list(materialized.metadata)
    assert names[:2] == ["comparison by P@1", "worth its cost"]
    assert names.index("threads") > names.index("table")  # what every asset has comes after
    assert "p at 1" not in names


def test_an_expert_shows_its_curves_its_cluster_and_its_gain(metadata):
    said = metadata["expert", "e001"]
    for name in ("loss curve", "learning rate curve"):
        assert said[name].value.startswith(f"![{name}](data:image/svg+xml;base64,")
        assert len(said[name].value) < 1000  # from there on the UI shows a link in its place
    assert said["curves with axes"].value.count("data:image/svg+xml") == 2
    assert said["typical posts"].path.endswith("sheets/e001.typical.png")
    assert "| hashtag | posts |" in said["hashtags that set it apart"].value
    assert isinstance(said["P@1 gain over the trunk"].value, float)


def test_a_pilot_shows_its_choice_its_curves_and_what_each_number_of_experts_would_cost(metadata):
    said = metadata["pilot", None]
    assert said["choice"].value.startswith(("training the trunk on: ", "K = 2: it would gain "))
    assert "data:image/svg+xml" in said["gain over the trunk by the share of the training"].value
    (gains,) = (value for name, value in said.items() if name.startswith("gain in P@1, "))
    assert "training on" in str(gains.value)
    assert "half the interval that each doubt alone would give" in said["notes"].value
    assert said["study: training images so far"].value > said["training images"].value > 0


def test_the_evaluation_shows_the_cost_of_all_training(metadata):
    trained = metadata["trunk", None]["training images"].value
    assert metadata["evaluation", None]["study: training images so far"].value > trained


def test_the_evaluation_shows_bands_of_hashtags_and_those_that_gain_and_lose_most(metadata):
    said = metadata["evaluation", None]
    bands = said["hashtags by band"]
    assert isinstance(bands, dg.MarkdownMetadataValue | dg.TableMetadataValue)
    assert "head" in str(bands.value if isinstance(bands, dg.MarkdownMetadataValue) else bands.records)
    assert said["every hashtag"].path.endswith("/hashtags.parquet")
    assert "hashtags that gain and lose most" in said


def test_the_partition_shows_sizes_and_each_cluster_its_hashtags(metadata):
    assert "| e000 |" in metadata["partition", None]["clusters"].value
    assert "data:image/svg+xml" in metadata["partition", None]["training posts of each expert"].value
    cluster = metadata["expert_shard", "e000"]
    assert cluster["training posts"].value > 0
    assert cluster["typical posts"].path.endswith("sheets/e000.typical.png")


def test_no_picture_of_a_post_is_given_to_dagster(metadata):
    """Its event log keeps what it is told; a takedown could not find a picture there."""
    texts = [v.value for said in metadata.values() for v in said.values() if isinstance(v, dg.MarkdownMetadataValue)]
    assert any("data:image/svg+xml" in text for text in texts)
    assert not any("data:image/" in text.replace("data:image/svg+xml", "") for text in texts)


def text_of(table):
    """Of a table, as Markdown or as records."""
    return table.value if isinstance(table, dg.MarkdownMetadataValue) else json.dumps([r.data for r in table.records])


def test_each_asset_shows_its_lineage_down_to_shards_and_settings(metadata):
    said = metadata["expert", "e001"]
    for place in (("trunk", None), ("partition", None), ("vocabulary", None), ("posts", "s0000")):
        assert metadata[place]["version"].value in text_of(said["lineage"])
    assert "s0000" in text_of(said["lineage: shards"])
    assert "expert_training.epochs" in text_of(said["lineage: settings"])
    assert "data.min_posts_per_tag" in text_of(said["lineage: settings"])


def test_an_expert_that_is_found_in_the_store_keeps_its_gains(events):
    """As a backfill of fresh experts does: the newest materialization is what the page of an expert shows."""
    (made,) = [e.metadata for e in events["expert", "e001"] if isinstance(e, dg.AssetMaterialization)]
    observed = {}
    for event in events["expert", "e001"]:
        if isinstance(event, dg.AssetObservation):
            observed |= event.metadata
    assert made["reused"].value
    for name in ("P@1 gain over the trunk", "on its test posts", "hashtags lifted and lowered"):
        assert made[name] == observed[name]


@pytest.mark.parametrize("key", ["e000", "e001"])
def test_an_expert_says_who_answers_for_it(metadata, key):
    (row,) = (line for line in metadata["mixture", None]["published"].value.splitlines() if f"| {key} |" in line)
    answers = "this expert (" if row.endswith("| expert |") else "the trunk: this expert is not published ("
    said = metadata["expert", key]["its images are answered by"].value
    assert said.startswith(answers + "gain in cross-entropy on its validation posts: ")


def test_the_trunk_answers_for_an_expert_that_is_not_published(told):
    assert told["answers"] == [
        "the trunk: this expert is not published (gain in cross-entropy on its validation posts: -0.0123)",
        "this expert (no validation post is routed to it)",
    ]


def test_the_publication_shows_what_is_published_and_why(metadata):
    said = metadata["published", None]
    assert said["published"].value == metadata["mixture", None]["version"].value
    assert said["why"].value == "nothing was published before"
    assert said["published"].value in text_of(said["history"])
