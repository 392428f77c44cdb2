"""Lineage: exact versions from the manifests alone, down to shards and settings, and what depends on them."""

import json
import shutil

import pytest
from click.testing import CliRunner

from helpers.two_mixtures import BAD, GOOD, tiny_study
from moe_core.engine.build import build
from moe_core.maintenance.lineage import Lineage, find, report
from moe_core.store.artifact import Spec, StageOutput
from moe_core.store.store import Store
from moe_core.workspace import open_study
from pipelines.cli.lineage import inputs_of, lines_of
from pipelines.cli.main import main


@pytest.fixture
def root(both, tmp_path):
    return shutil.copytree(both, tmp_path / "store")


def traced(root, name, version=None, study=GOOD):
    context = open_study(study, root)
    return report(context, find(context, name, version))


def names(said):
    return [node["asset"] if node["key"] is None else f"{node['asset']}:{node['key']}" for node in said["nodes"]]


def hardmoe(root, *arguments):
    return CliRunner().invoke(main, ["lineage", *arguments, "--study", str(root / "study.toml")])


def test_an_expert_came_from_these_versions_down_to_shards_and_settings(both):
    context = open_study(GOOD, both)
    said = traced(both, "expert:e001")
    nodes = dict(zip(names(said), said["nodes"], strict=True))
    assert next(iter(nodes)) == "expert:e001"
    assert set(nodes) == {
        "expert:e001",
        "trunk",
        "partition",
        "vocabulary",
        "splits",
        *(f"{name}:{shard.key}" for name in ("posts", "trunk_features") for shard in context.shards),
    }
    for name, node in nodes.items():
        asset, _, key = name.partition(":")
        assert node["version"] == context.version(asset, key or None)
        assert node["content_hash"] == context.need(asset, key or None).content_hash
    assert nodes["expert:e001"]["settings"]["expert_training"]["lr"] == 0.2
    assert nodes["trunk"]["settings"]["network"]["widths"] == [4, 8]
    for shard in context.shards:
        assert nodes[f"posts:{shard.key}"]["inputs"] == [
            {"name": "shard", "kind": "shard", "version": shard.content_hash, "of": []}
        ]
    inputs = {one["name"]: one for one in nodes["expert:e001"]["inputs"]}
    assert inputs["members"]["kind"] == "members"
    assert inputs["members"]["version"] == context.need("partition").metadata["members"]["e001"]
    assert inputs["members"]["of"] == [context.version("partition")]
    snapshot = nodes["splits"]["inputs"][0]
    assert (snapshot["name"], snapshot["kind"]) == ("posts", "snapshot")
    assert snapshot["of"] == [context.version("posts", shard.key) for shard in context.shards]


def test_what_depends_on_it_is_what_the_store_has(both):
    context = open_study(GOOD, both)
    below = {
        (one["asset"], one["key"]): (one["version"], one["direct"]) for one in traced(both, "expert:e001")["dependents"]
    }
    mixture = context.version("mixture")
    assert below.pop(("evaluation", None)) == (context.version("evaluation"), False)
    assert {below.pop(("embeddings", shard.key))[1] for shard in context.shards} == {False}
    assert below == {
        ("shared_decoder", None): (context.version("shared_decoder"), True),
        ("mixture", None): (mixture, True),
    }
    trunks = [one["version"] for one in traced(both, "vocabulary")["dependents"] if one["asset"] == "trunk"]
    assert sorted(trunks) == sorted(open_study(study, both).version("trunk") for study in (GOOD, BAD))
    assert traced(both, "evaluation")["dependents"] == []


def test_an_expert_knows_the_partition_of_its_own_trunk(both):
    """Both trunks have partitions, and a cluster may be the same in both."""
    for study in (GOOD, BAD):
        said = traced(both, "mixture", study=study)
        (partition,) = (node for node in said["nodes"] if node["asset"] == "partition")
        assert partition["version"] == open_study(study, both).version("partition")


def test_a_figure_comes_from_the_evaluation(both):
    said = traced(both, "mixture_top1_router")
    assert said["requested"]["asset"] == "evaluation"
    assert said["figure"]["name"] == "mixture_top1_router"
    assert said["figure"]["n"] > 0
    assert {"mixture", "expert:e000", "expert:e001", "shared_decoder"} < set(names(said))
    assert traced(both, "evaluation:trunk")["figure"]["name"] == "trunk"  # an asset has that name, too
    assert traced(both, "trunk")["figure"] is None


def test_a_node_comes_before_what_it_was_made_from(both):
    said = traced(both, "embeddings:" + open_study(GOOD, both).shards[0].key)
    place = {node["version"]: number for number, node in enumerate(said["nodes"])}
    for node in said["nodes"]:
        assert all(place[node["version"]] < place[v] for one in node["inputs"] for v in one["of"])


def test_old_versions_by_their_beginning(root):
    old = open_study(BAD, root).version("expert", "e000")
    said = traced(root, "expert:e000", old[:6])
    assert said["requested"]["version"] == old
    assert said["nodes"][0]["settings"]["expert_training"]["lr"] == 1e-9


@pytest.mark.parametrize(
    ("name", "version", "why"),
    [
        ("experts", None, "no asset or row 'experts': wanted one of posts"),
        ("expert", None, "expert names no artifact: wanted expert:KEY"),
        ("expert:e009", None, "expert has no partition 'e009'"),
        ("trunk:x", None, "trunk:x names no artifact: wanted trunk"),
        ("evaluation:best", None, "the table has no row 'best'"),
        ("random_partition", None, "this evaluation has no row 'random_partition': it has most_frequent, trunk"),
        ("trunk", "zz", "0 versions of trunk begin with 'zz': there are "),
        ("trunk", "", "2 versions of trunk begin with ''"),
        ("report", None, "is not built yet: `hardmoe run`"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(both, name, version, why):
    with pytest.raises(ValueError, match=why):
        traced(both, name, version)


def test_a_version_that_is_not_made_names_those_that_are(both):
    other = tiny_study(lr=0.3)
    with pytest.raises(
        ValueError, match=r"trunk .* is not built yet: .*--version with one of [0-9a-f]{20}, [0-9a-f]{20}"
    ):
        traced(both, "trunk", study=other)
    with pytest.raises(ValueError, match=r"older versions \(--version\): [0-9a-f]{20}, [0-9a-f]{20}"):
        traced(both, "mixture", study=other)


def test_what_was_removed_since_is_said_and_the_rest_is_shown(root):
    context = open_study(GOOD, root)
    shutil.rmtree(context.need("trunk").path)
    shutil.rmtree(context.need("posts", context.shards[0].key).path)
    said = traced(root, "expert:e000", context.version("expert", "e000"))
    inputs = {one["name"]: one["kind"] for one in said["nodes"][0]["inputs"]}
    assert inputs == {"members": "members", "trunk": "gone"}
    text = hardmoe(root, "expert:e000").output
    assert f"trunk {context.version('trunk')}  (no longer in the store)" in text
    assert f"posts {context.version('posts', context.shards[0].key)}  (no longer in the store)" in text


def test_an_expert_that_goes_on_from_another_has_it_in_its_lineage(tmp_path):
    """Inputs of other names are found by their versions."""
    store = Store(tmp_path)

    def made(asset, key, inputs, **metadata):
        plan = Spec(asset, key, "1", {}, inputs)
        return store.make(plan, lambda folder: StageOutput(metadata)).version

    trunk = made("trunk", None, {"start": "f" * 64})
    features = made("trunk_features", "s0", {"trunk": trunk})
    first = made("partition", None, {"features s0": features}, members={"e000": "one"})
    second = made("partition", None, {"features s0": features, "previous": first}, members={"e000": "two"})
    old = made("expert", "e000", {"members": "one", "trunk": trunk})
    new = made("expert", "e000", {"members": "two", "trunk": trunk, "from": old})
    lineage = Lineage(store)
    assert lineage.parents(new) == [second, trunk, old]
    assert lineage.parents(old) == [first, trunk]
    assert set(lineage.above(new)) == {new, old, first, second, trunk, features}
    assert [one for one, direct in lineage.below(old) if direct] == [new]
    assert [(i.kind, i.version) for i in lineage.inputs(trunk)] == [("file", "f" * 64)]


def test_what_names_tell_is_found_without_listing_the_store_and_many_shards_are_cut(both, monkeypatch):
    context = open_study(GOOD, both)
    expert = context.need("expert", "e001")
    whole = Lineage(context.store, {expert.version: expert}).above(expert.version)

    listed = []
    folders = Store.folders
    monkeypatch.setattr(Store, "folders", lambda store, asset: listed.append(asset) or folders(store, asset))
    assert Lineage(context.store, {expert.version: expert}).above(expert.version) == whole
    assert set(listed) == {"partition"}, "which says whose members they are"
    lineage = Lineage(context.store, {expert.version: expert})
    assets = [lineage.artifact(version).asset for version in lineage.above(expert.version, most=1)]
    assert sorted(assets) == sorted(["expert", "partition", "trunk_features", "trunk", "vocabulary", "splits", "posts"])


def test_a_generation_trained_jointly_names_the_partition_of_its_clusters(tmp_path):
    store = Store(tmp_path)

    def made(asset, key, inputs, **metadata):
        return store.make(Spec(asset, key, "1", {}, inputs), lambda folder: StageOutput(metadata)).version

    partition = made(
        "partition", None, {}, members={"e000": "a", "e001": "b"}, random_members={"e000": "c", "e001": "d"}
    )
    joint = made("joint_experts", None, {"trunk": "gone", "e000": "a", "e001": "b"})
    random = made("random_joint_experts", None, {"trunk": "gone", "e000": "c", "e001": "d"})
    lineage = Lineage(store)
    assert lineage.parents(joint) == lineage.parents(random) == [partition]
    assert {i.name: i.kind for i in lineage.inputs(joint)} == {"trunk": "gone", "e000": "members", "e001": "members"}
    inputs = [{"name": i.name, "kind": i.kind, "version": i.version, "of": i.of} for i in lineage.inputs(joint)]
    lines = list(inputs_of({partition: {"asset": "partition"}}, {}, {"inputs": inputs}))
    assert lines == [(None, "trunk gone  (no longer in the store)"), (partition, "")], "once, not once a cluster"


def test_a_damaged_manifest_is_named(root):
    path = open_study(GOOD, root).need("vocabulary").path / "artifact.json"
    path.write_text("{")
    done = hardmoe(root, "expert:e000")
    assert done.exit_code == 1
    assert f"{path} is damaged" in done.output


def test_the_command_prints_a_tree_with_each_node_once(both):
    context = open_study(GOOD, both)
    text = hardmoe(both, "mixture").output.splitlines()
    assert text[0] == f"mixture {context.version('mixture')}  content hash {context.need('mixture').content_hash}"
    tree = text[: text.index("Settings")]
    splits = [line for line in tree if f"splits {context.version('splits')}" in line]
    assert len([line for line in splits if "(see above)" not in line]) == 1
    assert len(splits) > 1
    shard = context.shards[0]
    assert any(f"content of the shard {shard.content_hash}" in line for line in tree)
    assert any("expert (2): code 1, " in line and "expert_training.lr=0.2" in line for line in text)
    assert f"  evaluation {context.version('evaluation')}" in text
    said = json.loads(hardmoe(both, "mixture", "--json").output)
    assert said["study"] == "two"
    named = [f"{node['version']}  content hash" for node in said["nodes"]]
    assert sum(name in line for name in named for line in tree) == len(named)


def test_many_shards_are_counted_in_the_text(tmp_path):
    store = Store(tmp_path)
    features = {
        f"features s{n:02d}": store.make(
            Spec("trunk_features", f"s{n:02d}", "1", {}, {}), lambda folder: StageOutput({})
        ).version
        for n in range(30)
    }
    version = store.make(Spec("partition", None, "1", {}, features), lambda folder: StageOutput({})).version
    said = traced(tmp_path, "partition", version)
    assert len(said["nodes"]) == 31
    text = list(lines_of(said, {}))
    assert sum("trunk_features:s" in line for line in text[: text.index("Settings")]) == 12
    assert "└─ and 18 more of trunk_features (--json has all)" in text


def test_the_published_mixture_is_marked(root):
    context = open_study(GOOD, root)
    build(context, "published")
    published = context.version("mixture")
    assert traced(root, "trunk")["publication"] == {published: "published"}
    assert f"mixture {published} is published" in hardmoe(root, "expert:e000").output
    assert {one["asset"] for one in traced(root, "mixture")["dependents"]} == {
        "published",
        "evaluation",
        "embeddings",
    }
