"""Planning as data: specs, what blocks them, and that nothing is written or scanned for them."""

import hashlib
from dataclasses import replace

import pytest

from helpers.two_mixtures import GOOD, made
from moe_core.engine.build import build
from moe_core.engine.planner import Blocked
from moe_core.engine.stage import Graph, Recorded, Ref, Stage
from moe_core.errors import BadSetting, CorruptArtifact, MissingInput
from moe_core.settings import Study
from moe_core.stages.graph import GRAPH
from moe_core.store.artifact import Spec, StageOutput
from moe_core.store.documents import FolderDocuments
from moe_core.store.layout import Layout
from moe_core.workspace import open_study


def stage(name, inputs, reads=(), **more):
    def make(context, spec, folder):
        (folder / "a").write_text(name)
        return StageOutput({"number": f"{name} says 7"})

    return Stage(name, "1", reads, lambda study: {}, lambda planner, key: inputs, make, **more)


def with_stages(*stages):
    return Graph([*GRAPH.values(), *stages], GRAPH.aliases)


def test_an_input_is_a_word_a_version_or_what_an_artifact_records(tmp_path):
    first = stage("first", {"word": "as it is"})
    second = stage("second", {"first": Ref("first"), "seven": Recorded("first", lambda a: a.metadata["number"])})
    third = stage("third", {"second": Ref("second")})
    graph = with_stages(first, second, third)
    planner = open_study(GOOD, tmp_path, graph=graph).planner
    assert planner.spec("first") == Spec("first", None, "1", {}, {"word": "as it is"})
    assert planner.spec("third") == planner.spec("second") == Blocked(("first", None)), "through others, too"
    with pytest.raises(MissingInput, match="first, which third needs, is missing: materialize first first"):
        planner.known("third")
    built = build(open_study(GOOD, tmp_path, graph=graph), "first").artifact
    assert planner.known("second").inputs == {"first": built.version, "seven": "first says 7"}
    assert planner.known("third").inputs == {"second": planner.known("second").version}
    assert planner.artifact("third") == Blocked(("third", None)), "known, and to be built itself"


def test_what_is_wrong_blocks_what_reads_it_and_is_raised_where_it_is_needed(tmp_path):
    def damaged(planner, spec):
        raise CorruptArtifact("a pointer is damaged")

    graph = with_stages(stage("first", {}, resolve=damaged), stage("second", {"first": Ref("first")}))
    planner = open_study(GOOD, tmp_path, graph=graph).planner
    assert str(planner.spec("second")) == "a pointer is damaged"
    with pytest.raises(CorruptArtifact, match="a pointer is damaged"):
        planner.need("second")


def test_a_stage_or_a_key_that_the_study_has_not_is_a_mistake(tmp_path):
    planner = open_study(GOOD, tmp_path).planner
    for name in ("nothing", "random_expert", "joint_experts"):  # the study has no controls, and a frozen decoder
        with pytest.raises(BadSetting, match=f"no asset '{name}' in this study: wanted one of posts, splits"):
            planner.spec(name)
    with pytest.raises(BadSetting, match="expert has no partition 'e007': it has e000, e001"):
        planner.spec("expert", "e007")
    with pytest.raises(BadSetting, match="trunk has no partition 'e000': it has no partitions"):
        planner.spec("trunk", "e000")


def test_the_graph_of_a_study_leaves_out_what_its_settings_leave_out():
    every = {"random_expert", "separate_expert", "random_decoder", "trunk_same_budget", "dense_same_cost"}
    with_controls = Study()
    assert every <= set(GRAPH.for_study(with_controls))
    without = GRAPH.for_study(GOOD)
    assert not every & set(without)
    assert without.upstream["evaluation"] == ("mixture", "posts", "splits")
    assert without.upstream["expert"] == ("partition", "trunk"), "the name of its part stands for the partition"
    assert without.above["expert"] == {"posts", "splits", "vocabulary", "trunk", "trunk_features", "partition"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return made(tmp_path_factory.mktemp("planner"), "report")


def bytes_under(root):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}


def test_planning_writes_nothing_and_scans_no_rows(finished, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("rows are read")

    before = bytes_under(finished)
    monkeypatch.setattr("lance.dataset", refuse)
    monkeypatch.setattr("polars.read_parquet", refuse)
    for study in (GOOD, GOOD.model_copy(update={"partition": GOOD.partition.model_copy(update={"experts": 3})})):
        for requests in ((), ("refit",), ("renew",)):
            assert len(open_study(study, finished, requests=requests).planner.tasks()) > 10
    assert bytes_under(finished) == before


def test_the_token_tells_a_request_a_takedown_and_a_decision_from_nothing(finished):
    from moe_core.stages.gate import current_partition
    from moe_core.workspace import token

    state = open_study(GOOD, finished).planner.state
    assert token(GOOD, FolderDocuments(finished)) == state.token
    current_partition.request_refit(open_study(GOOD, finished))
    assert token(GOOD, FolderDocuments(finished)) != state.token
    Layout(finished).request("partition").unlink()
    assert token(GOOD, FolderDocuments(finished)) == state.token


@pytest.mark.parametrize("setting", ["stop_tags", "synonyms"])
def test_the_token_tells_that_a_file_of_tags_was_edited(finished, tmp_path, setting):
    from moe_core.workspace import token

    file = tmp_path / "tags.txt"
    file.write_text("cat = dog\n")
    study = GOOD.model_copy(update={"data": GOOD.data.model_copy(update={setting: str(file)})})
    before = token(study, FolderDocuments(finished))
    assert token(study, FolderDocuments(finished)) == before
    file.write_text("cat = bird\n")
    assert token(study, FolderDocuments(finished)) != before


def test_the_token_tells_that_the_weights_to_start_from_were_replaced(finished, tmp_path):
    from moe_core.workspace import token

    file = tmp_path / "start.safetensors"
    study = GOOD.model_copy(update={"trunk_setup": GOOD.trunk_setup.model_copy(update={"start": str(file)})})
    before = token(study, FolderDocuments(finished))
    file.write_bytes(b"weights")
    assert token(study, FolderDocuments(finished)) != before


def test_a_study_whose_source_is_away_is_opened_and_says_so_where_the_source_is_needed(finished):
    away = GOOD.model_copy(
        update={"source": GOOD.source.model_copy(update={"format": "parquet", "uri": str(finished / "gone.parquet")})}
    )
    planner = open_study(away, finished).planner
    assert isinstance(planner.state.source, Exception)
    with pytest.raises(type(planner.state.source), match=r"gone\.parquet"):
        _ = planner.state.shards
    assert replace(planner.state, source=()).shards == ()


def test_every_stage_names_the_function_that_makes_it():
    assert all(callable(stage.maker()) for stage in GRAPH.values())
