"""120 experts: what one of them makes stale; and a study whose number of experts changes."""

import json
import os
import shutil
import subprocess
import sys

import dagster as dg
import pytest
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from PIL import Image

from helpers.command import hardmoe, write
from helpers.plain import make_plainly
from helpers.without_controls import opened, quick_study
from moe_core.clustering.gate import load_gate
from moe_core.recipes import demo
from moe_core.settings import Partition, Source
from moe_core.store.artifact import StageOutput
from moe_core.store.hashing import content_hash
from pipelines.instance import opening
from pipelines.instance.home import prepare_home
from pipelines.run.status import states_of

STALENESS = """
import sys

import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest
from pipelines.definitions import defs

with dg.DagsterInstance.get() as instance:
    resolver = CachingStaleStatusResolver(instance, defs.resolve_asset_graph(), LoadingContextForTest(instance))
    places = [place.partition(":") for place in sys.argv[1:] or ("shared_decoder", "mixture", "evaluation")]
    print(*(resolver.get_status(dg.AssetKey(name), key or None).value for name, _, key in places))
"""


@pytest.mark.soak
def test_one_changed_expert_of_120_makes_decoder_mixture_and_evaluation_stale(tmp_path, monkeypatch):
    """Dagster itself looks at no more than 100 partitions of what an asset depends on."""
    many = Partition(experts=120, pca=8)
    study = quick_study(source=Source(format="synthetic", posts=1500, shards=1), partition=many)
    file = write(tmp_path, study)
    make_plainly(file)
    monkeypatch.setenv("DAGSTER_HOME", str(prepare_home(tmp_path, 2)))
    work = opened(file)
    recorded = ("posts", "splits", "vocabulary", "trunk", "trunk_features", "expert")
    with opening.opened() as dagster:
        for name in recorded:
            for key in work.planner.keys(name):
                tags = {DATA_VERSION_TAG: work.version(name, key)}
                dagster.report_runless_asset_event(dg.AssetMaterialization(name, partition=key, tags=tags))
    run = ("run", "--study", file, "--workers", 2, "--until")
    dagster_home = {"DAGSTER_HOME": str(tmp_path / "dagster")}
    assert "0 made, 129 fresh, 0 failed" in hardmoe(*run, "evaluation", **dagster_home).stdout
    assert staleness(file) == "FRESH FRESH FRESH"
    write(tmp_path, study.model_copy(update={"partition": many.model_copy(update={"iterations": many.iterations + 1})}))
    repartition_one(work, opened(file), "e007")
    found = {(state.asset, state.key): (state.state, state.why) for state in states_of(opened(file))}
    old = {place: why for place, (state, why) in found.items() if state != "fresh"}
    assert old.pop(("expert", "e007")) == "its posts changed"
    assert old.pop(("shared_decoder", None)) == "expert e007 retrained"
    assert {name for name, _ in old} == {"mixture", "published", "evaluation", "embeddings", "search_index", "report"}
    assert "0 made, 6 fresh, 0 failed" in hardmoe(*run, "partition", **dagster_home).stdout
    assert staleness(file) == "STALE STALE FRESH"  # Dagster looks no further than to what an asset reads itself
    assert "3 made, 125 fresh, 0 failed" in hardmoe(*run, "mixture", **dagster_home).stdout
    assert staleness(file) == "FRESH FRESH STALE"
    assert "1 made, 128 fresh, 0 failed" in hardmoe(*run, "evaluation", **dagster_home).stdout
    assert {state.state for state in states_of(opened(file), only="expert")} == {"fresh"}
    assert staleness(file) == "FRESH FRESH FRESH"


@pytest.mark.soak
def test_eight_experts_become_twelve_and_eight_again(tmp_path):
    """By the commands, with controls, a decoder that is refitted and Dagster's own staleness at each step."""
    file = write(
        tmp_path,
        quick_study(
            source=Source(format="synthetic", posts=3000, shards=2),
            partition=Partition(experts=8, pca=8),
            evaluation=demo().evaluation.model_copy(update={"bootstrap": 20}),
        ),
    )
    hardmoe("run", "--study", file, "--workers", 2)
    first = opened(file)
    assert first.experts == [f"e{k:03d}" for k in range(8)]
    weights = {key: first.need("expert", key).path for key in first.experts}
    after = ("shared_decoder", "mixture", "published", "evaluation", "embeddings", "search_index", "report")
    bundles, ever = {first.version("mixture"): first.experts}, set(first.experts)
    for count in (12, 8):
        before = opened(file)
        planned = hardmoe("run", "--study", file, "--workers", 2, "--set", f"partition.experts={count}", "--dry-run")
        assert "partition" in planned.stdout
        assert opened(file).experts == before.experts, "a dry run changed something"
        hardmoe("run", "--study", file, "--workers", 2, "--set", f"partition.experts={count}")
        now = opened(file)
        said = now.need("partition").metadata
        kept, new = set(now.experts) & set(before.experts), set(now.experts) - set(before.experts)
        assert len(now.experts) == count
        assert len(new) == max(0, count - len(before.experts))
        assert not new & ever, "a key was used twice"
        assert new <= set(said["trained_again"])
        for key in kept - set(said["trained_again"]):
            assert now.need("expert", key).path == before.need("expert", key).path
        ever |= new
        assert {state.state for state in states_of(now)} == {"fresh"}
        experts = [f"{name}:{key}" for name in ("expert", "random_expert", "separate_expert") for key in now.experts]
        assert set(staleness(file, *experts, *after).split()) == {"FRESH"}
        assert set(now.need("shared_decoder").inputs) >= set(now.experts)
        table = json.loads(now.need("evaluation").file("table.json").read_text())
        assert {row["expert"] for row in table["per_expert"]} == set(now.experts)
        bundles[now.version("mixture")] = now.experts
        assert "0 made" in hardmoe("run", "--study", file, "--workers", 2).stdout
    assert all(path.exists() for path in weights.values())
    assert hardmoe("verify", "--study", file).returncode == 0
    image = tmp_path / "one.png"
    Image.new("RGB", (40, 40), (200, 60, 20)).save(image)
    for version, keys in bundles.items():
        bundle = first.store.layout.artifact("mixture", None, version)
        (answer,) = json.loads(hardmoe("predict", "--bundle", bundle, image, "--json").stdout)
        assert answer["expert"] in keys


def repartition_one(old, new, key):
    """A partition that differs from the one before in the posts of one expert."""
    before = old.need("partition")

    def write(folder):
        shutil.copytree(before.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("artifact.json"))
        gate, about = load_gate(before.file("gate.safetensors"))
        gate.save(folder / "gate.safetensors", about | {"version": new.version("partition")})
        members = {**before.metadata["members"], key: "another cluster"}
        return StageOutput(before.metadata | {"members": members}, content={"members": content_hash(members)})

    new.store.make(new.spec("partition"), write)


def staleness(file, *places):
    """Dagster's own word on each place, ASSET or ASSET:KEY."""
    environment = os.environ | {"HARDMOE_STUDY": str(file), "DAGSTER_HOME": str(file.parent / "dagster")}
    done = subprocess.run([sys.executable, "-c", STALENESS, *places], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
