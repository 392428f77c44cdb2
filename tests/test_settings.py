import os
from pathlib import Path

import pytest

from moe_core.data.sources.shards import find_shards
from moe_core.settings import Data, Network, Source, Study
from moe_core.stages.data.stages import FILES_OF_WORDS
from moe_core.stages.graph import GRAPH
from moe_core.study_file import dump_study, load_study


def test_a_dumped_study_loads_as_the_same(tmp_path):
    study = Study(name="cats", network=Network(widths=(4, 8), depths=(1, 2)))
    (tmp_path / "study.toml").write_text(dump_study(study))
    assert load_study(tmp_path / "study.toml") == study


def test_unknown_setting_is_named(tmp_path):
    (tmp_path / "study.toml").write_text("[trunk]\nlearning_rate = 0.1\n")
    with pytest.raises(ValueError, match=r"unknown setting 'trunk.learning_rate'"):
        load_study(tmp_path / "study.toml")


def test_wrong_value_is_shown(tmp_path):
    (tmp_path / "study.toml").write_text("[trunk]\nepochs = -1\n")
    with pytest.raises(ValueError, match=r"trunk.epochs = -1"):
        load_study(tmp_path / "study.toml")


def test_a_list_whose_items_are_wrong_is_not_called_empty(tmp_path):
    (tmp_path / "study.toml").write_text("[pilot]\nexperts = [1]\n")
    with pytest.raises(ValueError, match=r"pilot\.experts\.0 = 1: Input should be greater than or equal to 2$"):
        load_study(tmp_path / "study.toml")


@pytest.mark.parametrize(
    "text", ["[data]\nstore = 'raw'\nstore = 'png'\n", "[data]\n[data]\n", "a = " + "[" * 10_000, "name = 'a\x00b'"]
)
def test_what_is_no_toml_is_said_in_one_line(tmp_path, text):
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(ValueError, match="is not valid TOML"):
        load_study(tmp_path / "study.toml")


def test_missing_study_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="hardmoe init"):
        load_study(tmp_path / "study.toml")


def test_stages_must_agree():
    with pytest.raises(ValueError, match="same length"):
        Network(widths=(8, 16), depths=(1,))


@pytest.mark.parametrize(
    ("expert", "said"),
    [({"branch_at": 2}, "at least one must be the expert's own"), ({"branch_at": 1, "start": "scratch"}, "it needs")],
)
def test_an_expert_cannot_share_all_stages_nor_share_them_from_scratch(expert, said):
    with pytest.raises(ValueError, match=said):
        Study(network=Network(widths=(4, 8), depths=(1, 1)), expert=expert)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[expert]\nbranch_at = 3\n", "branch_at"),
        ("name = 'a b'\n", "name 'a b' must be"),
        ("trunk = 3\n", "trunk = 3: wanted a table, [trunk]"),
        ("[network]\nwidths = 8\n", "network.widths = 8: wanted a list"),
        ("[trunk]\nloss = 'hinge'\n", "trunk.loss = 'hinge': "),
        ("[trunk]\nlr = inf\n", "trunk.lr = inf: Input should be a finite number"),
        ("[partition]\nseed = 2147483648\n", "partition.seed = 2147483648: "),
        ("[partition]\nexperts = 100000\n", "partition.experts = 100000: "),
        ("[store]\nuri = 'ftp://x/y'\n", "[store] uri = 'ftp://x/y': wanted a bucket, as in s3://, gs://, az://, or"),
        ("[store]\nuri = 'cats'\n", "[store] uri = 'cats': wanted a bucket"),
        ("[store]\nuri = 's3://x/a b'\n", "[store] uri = 's3://x/a b': wanted a bucket and a prefix of letters"),
        ("[store]\nuri = 's3://x/../y'\n", "wanted a bucket and a prefix of letters"),
        ("[store]\nendpoint = 'http://x'\n", "[store] endpoint = 'http://x' does nothing without uri"),
        ("[store]\nuri = 's3://x'\nendpoint = 'x:8333'\n", "endpoint = 'x:8333': wanted a URL"),
        ("[cluster]\naddress = 'gpu01'\n", "wanted 'auto' or HOST:PORT, such as 'gpu01:6379'"),
        ("[cluster]\naddress = 'ray://gpu01:10001'\n", "the work of a Ray client is lost with its connection"),
    ],
)
def test_a_mistake_is_told_without_the_rest_of_the_study(tmp_path, text, said):
    file = tmp_path / "study.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"study\.toml: ") as error:
        load_study(file)
    told = str(error.value).removeprefix(f"{file}: ")
    assert said in told
    assert len(told) < 200
    assert "pydantic" not in told
    assert "constrained" not in told


@pytest.mark.parametrize(
    "text", ["uri = 's3://key:hunter2@cats'", "uri = 's3://x/y?secret=hunter2'", "endpoint = 'http://a:hunter2@x'"]
)
def test_a_secret_in_the_study_is_refused_and_not_shown(tmp_path, text):
    file = tmp_path / "study.toml"
    file.write_text(f"[store]\n{text}\n")
    with pytest.raises(ValueError, match=r"\[store\] \w+ holds more than an address: credentials belong in") as error:
        load_study(file)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[trunk]\nlr = true\n", "trunk.lr = True: Input should be a valid number"),
        ("[trunk]\nepochs = '3'\n", "trunk.epochs = '3': Input should be a valid number"),
        ("[trunk]\nepochs = 1e300\n", "trunk.epochs = 1e+300: "),
        ("[network]\nwidths = [8, true]\ndepths = [1, 1]\n", "network.widths.1 = True: "),
        ("[trunk]\nepochs = 2020-01-01\n", "trunk.epochs = datetime.date(2020, 1, 1): "),
        ("[partition]\nexperts = 4.0\n", "partition.experts = 4.0: "),
        ("trunk = [1, 2]\n", "trunk = [1, 2]: wanted a table"),
        ("[[trunk]]\nlr = 1\n", "wanted a table, [trunk]"),
        ("[alerts]\ncommand = 'rm'\n", "alerts.command = 'rm': wanted a list"),
        (f"[partition]\nexperts = {'9' * 400}\n", "partition.experts = 999"),
        (f"[partition]\nexperts = {'9' * 5000}\n", "is not valid TOML: Exceeds the limit"),
        (f"a = {'[' * 5000}{']' * 5000}\n", "is not valid TOML: maximum recursion depth"),
        (f"{'.'.join('a' * 9000)} = 1\n", "unknown setting 'a'"),
        (f"'{'k' * 100_000}' = 1\n", "unknown setting 'kkk"),
        ("".join(f"k{n} = 1\n" for n in range(5000)), "and 4992 more"),
        (f"# {'x' * (1 << 20)}\n", "wanted a study.toml of at most 1,048,576"),
        ("[source]\nshards = 1_000_000_000\n", "source.shards = 1000000000: "),
        ("[evaluation]\nbootstrap = 1_000_000_000_000\n", "evaluation.bootstrap = "),
        ("[trunk]\nbatch_size = 99999999999999999999\n", "trunk.batch_size = 99999999999999999999: "),
        ('"\\u001b[31mx\\nError: y" = 1\n', r"unknown setting '\x1b[31mx\nError: y'"),
    ],
)
def test_what_no_setting_may_be_is_one_short_line(tmp_path, text, said):
    file = tmp_path / "study.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"study\.toml") as error:
        load_study(file)
    told = str(error.value)
    assert said in told
    assert len(told) < len(str(file)) + 700
    assert told.isprintable()


def test_a_mark_of_byte_order_before_the_settings_is_no_mistake(tmp_path):
    (tmp_path / "study.toml").write_bytes("\ufeffname = 'cats'\r\n".encode())
    assert load_study(tmp_path / "study.toml").name == "cats"


DATA_STAGES = ("posts", "splits", "vocabulary")
NOT_OF_DATA_STAGES = {*FILES_OF_WORDS, "block"}  # the content of a file is an input; a training reads in blocks


@pytest.mark.parametrize("name", sorted(Data.model_fields.keys() - NOT_OF_DATA_STAGES))
def test_a_field_of_data_counts_for_the_stages_that_it_is_listed_for(name):
    counts = {stage for stage in DATA_STAGES if name in GRAPH[stage].settings(Study())["data"]}
    assert counts == {stage for stage in DATA_STAGES if name in Data.FIELDS_OF[stage]} != set()


def test_a_field_of_data_that_is_listed_for_no_stage_counts_for_all():
    class Newer(Data):
        sharpen: float = 0.0

    study = Study().model_copy(update={"data": Newer(sharpen=0.5)})
    assert [GRAPH[stage].settings(study)["data"]["sharpen"] for stage in DATA_STAGES] == [0.5] * 3


def test_blocks_count_for_every_training_and_blocks_of_one_for_none():
    study = Study()
    for name, stage in GRAPH.items():
        before, after = stage.settings(study), stage.settings(study.changed(data={"block": 64}))
        if stage.trains:
            assert after == before | {"data": before.get("data", {}) | {"block": 64}}, name
        else:
            assert after == before, name


def test_fields_are_listed_by_their_names():
    assert set().union(*Data.FIELDS_OF.values()) == set(Data.model_fields)


def test_a_field_of_source_that_says_how_a_file_is_read_changes_its_shards(tmp_path):
    class Newer(Source):
        sheet: str = ""

    (tmp_path / "posts.csv").write_text("file,tags\na.jpg,cat\n")
    before, after = (Newer(format="folder", uri=str(tmp_path), sheet=sheet) for sheet in ("", "two"))
    assert find_shards(before)[0].content_hash != find_shards(after)[0].content_hash


def test_relative_paths_begin_in_the_folder_of_the_study_wherever_the_process_stands(tmp_path, monkeypatch):
    (tmp_path / "study.toml").write_text(
        '[source]\nuri = "photos/*.parquet"\nimages = "../images"\n'
        '[data]\nstop_tags = "stop.txt"\nsynonyms = "/same.txt"\n[trunk_setup]\nstart = "start.pth"\n'
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in (tmp_path / "study.toml", Path("../study.toml")):
        study = load_study(name)
        found = (study.source.uri, study.source.images, study.data.stop_tags, study.data.synonyms)
        assert [os.path.normpath(path) for path in (*found, study.trunk_setup.start)] == [
            f"{tmp_path}/photos/*.parquet",
            f"{tmp_path.parent}/images",
            f"{tmp_path}/stop.txt",
            "/same.txt",
            f"{tmp_path}/start.pth",
        ]
    (tmp_path / "study.toml").write_text('[source]\nuri = "s3://bucket/photos"\n')
    assert load_study(tmp_path / "study.toml").source.uri == "s3://bucket/photos"
