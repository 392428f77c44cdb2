"""Takedown: what is taken down leaves the disk, stays away, and is known to have been seen by the right networks."""

import json
import shutil
import sys

import polars as pl
import pytest

from helpers.command import hardmoe
from helpers.plain import make_plainly
from helpers.takedown import (
    GONE,
    SIZE,
    files_with,
    noise,
    pixels_on_disk,
    reopen,
    smaller,
    study_of_two_users,
    two_shards,
    write_source,
)
from moe_core.data.takedowns import Takedowns
from moe_core.engine.build import build
from moe_core.maintenance.exposure import networks_that_saw
from moe_core.maintenance.takedown import forget
from moe_core.maintenance.verify import Damage, verify
from moe_core.store.artifact import Spec, StageOutput
from moe_core.store.documents import FolderDocuments
from moe_core.store.layout import NAMES
from moe_core.store.store import Store
from moe_core.study_file import dump_study, load_study
from moe_core.tables.lance_tags import delete_lance_tag, lance_tag_of, lance_tags
from moe_core.tables.location import tables_in
from moe_core.tables.reading import read_rows
from moe_core.workspace import open_study


def states(study_file):
    rows = json.loads(hardmoe("status", "--study", study_file, "--json").stdout)["assets"]
    return {(row["asset"], row["key"]): row for row in rows}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    study = study_of_two_users(write_source(folder / "source"))
    (folder / "store").mkdir()
    (folder / "store" / "study.toml").write_text(dump_study(study), "utf-8")
    make_plainly(folder / "store" / "study.toml")
    return folder / "store"


@pytest.mark.slow
def test_a_takedown_from_the_command_to_the_retrained_mixture(trained, tmp_path):
    root = tmp_path / "store"
    shutil.copytree(trained, root)
    study_file = root / "study.toml"
    before = open_study(load_study(study_file), root)
    assignment = pl.read_parquet(before.need("partition").path / "assignment")
    expert = f"e{assignment.filter(pl.col('id') == GONE)['expert'].item():03d}"
    other = "e001" if expert == "e000" else "e000"
    old = {key: before.need("expert", key) for key in before.experts}
    (tmp_path / "ids").write_text(f"{GONE}\nnobody-knows-this\n")
    assert files_with(root, GONE.encode())
    assert files_with(root, pixels_on_disk(0))
    assert files_with(root, pixels_on_disk(1))

    dry = json.loads(hardmoe("forget", "--study", study_file, "--ids", tmp_path / "ids", "--dry-run", "--json").stdout)
    assert not (root / "takedowns.parquet").exists()
    assert files_with(root, pixels_on_disk(0))
    done = json.loads(hardmoe("forget", "--study", study_file, "--ids", tmp_path / "ids", "--apply", "--json").stdout)
    for name in ("posts", "shards", "unknown", "saw"):
        assert done[name] == dry[name]
    assert set(dry["removed"]) <= set(done["removed"])
    assert (done["posts"], done["shards"], done["unknown"]) == (1, ["a"], ["nobody-knows-this"])
    assert [name.split()[0] for name in done["saw"]] == ["trunk", f"expert:{expert}", "shared_decoder", "mixture"]
    assert {name.split("/")[0] for name in done["removed"]} >= {
        "trunk_features",
        "embeddings",
        "search_index",
        "partition",
        "report",
        "vocabulary",
    }
    assert files_with(root, GONE.encode()) == []
    assert files_with(root, pixels_on_disk(0)) == []
    assert files_with(root, pixels_on_disk(1)), "others stay"
    assert all(artifact.file("weights.safetensors").exists() for artifact in old.values()), "networks stay"

    found = states(study_file)
    assert found["posts", "a"]["state"] == "stale"
    assert found["posts", "a"]["why"] == "posts taken down"
    assert found["posts", "b"]["state"] == "fresh"
    for name, key in (("trunk", None), ("expert", expert), ("shared_decoder", None), ("mixture", None)):
        assert found[name, key]["state"] == "stale", name
        assert found[name, key]["why"].startswith("posts taken down; "), name
    assert found["expert", other]["state"] == "stale"
    assert not found["expert", other]["why"].startswith("posts taken down")

    make_plainly(study_file)
    assert {row["state"] for row in states(study_file).values()} == {"fresh"}
    counts = json.loads(hardmoe("status", "--study", study_file, "--json").stdout)["posts"]
    assert counts["rejects_by_reason"] == {"taken_down": 1, "not_an_image": 1}
    assert counts["accepted"] + counts["rejected"] == counts["read"] == 240
    assert files_with(root, GONE.encode()) == []
    assert files_with(root, pixels_on_disk(0)) == []

    again = json.loads(hardmoe("forget", "--study", study_file, "--ids", tmp_path / "ids", "--apply", "--json").stdout)
    assert (again["posts"], again["removed"]) == (0, [])
    assert {row["state"] for row in states(study_file).values()} == {"fresh"}


@pytest.fixture
def ingested(tmp_path):
    return two_shards(tmp_path)


def test_posts_of_a_user_leave_accepted_and_rejected_in_every_shard(ingested):
    root = ingested.root
    assert files_with(root, b"post-of-ann-003"), "the rejected one"
    done = forget(ingested, users=["user-ann", "user-of-no-post"])
    assert (done.posts, done.shards, done.unknown) == (5, ["a", "b"], ["user-of-no-post"])
    assert files_with(root, b"post-of-ann") == []
    assert files_with(root, b"user-ann") == []
    assert [files_with(root, pixels_on_disk(seed)) for seed in (0, 1, 2, 120)] == [[]] * 4
    assert files_with(root, pixels_on_disk(121))


def test_only_shards_that_held_them_are_ingested_again(ingested):
    forget(ingested, ids=[GONE])
    now = reopen(ingested)
    assert now.find("posts", "a") is None
    assert now.find("posts", "b") is not None
    kept = lance_tags(tables_in(now.root).posts)
    assert [name for name in kept if name.startswith("posts.b.")], "b's rows are still tagged"
    assert not [name for name in kept if name.startswith("posts.a.")]


def test_after_a_takedown_nothing_is_damaged_before_the_next_run_and_after_it(ingested):
    old = ingested.need("posts", "a")
    forget(ingested, ids=[GONE])
    assert not [one for one in verify(reopen(ingested)) if isinstance(one, Damage)]
    build(reopen(ingested), "posts", "a")
    found = list(verify(reopen(ingested)))
    assert not [one for one in found if isinstance(one, Damage)]
    assert old in found, "what is left of it is read"
    now = reopen(ingested).need("posts", "a")
    delete_lance_tag(tables_in(ingested.root).posts, lance_tag_of("a", now.version))
    assert [one.where for one in verify(reopen(ingested)) if isinstance(one, Damage)] == [str(now.path)]


def test_the_forgotten_do_not_come_back_and_their_reject_names_nobody(ingested):
    import lance

    forget(ingested, ids=[GONE])
    now = reopen(ingested)
    made = build(now, "posts", "a").artifact
    assert made.metadata["reasons"] == {"taken_down": 1, "not_an_image": 1}
    assert made.metadata["read"] == made.metadata["accepted"] + made.metadata["rejected"] == 120
    (row,) = lance.dataset(str(now.root / "rejects.lance")).to_table(filter="reason = 'taken_down'").to_pylist()
    assert {name: row[name] for name in row if name not in ("shard", "source")} == {
        "position": 0,
        "id": None,
        "user": None,
        "written": None,
        "reason": "taken_down",
        "detail": "",
    }
    assert files_with(now.root, GONE.encode()) == []


def test_an_id_that_nobody_knows_yet_is_refused_when_it_comes(ingested, tmp_path):
    done = forget(ingested, ids=["comes-later"])
    assert (done.unknown, done.posts, done.removed) == (["comes-later"], 0, [])
    assert reopen(ingested).find("posts", "a") is not None, "nothing is stale"
    frame = pl.read_parquet(tmp_path / "source" / "b.parquet")
    frame = frame.with_columns(pl.format("c-{}", "id").alias("id"))
    frame[0, "id"] = "comes-later"
    frame.write_parquet(tmp_path / "source" / "c.parquet")
    made = build(reopen(ingested), "posts", "c").artifact
    assert made.metadata["reasons"] == {"taken_down": 1}


def test_a_rejected_duplicate_does_not_hide_the_accepted_post(ingested, tmp_path):
    frame = pl.read_parquet(tmp_path / "source" / "b.parquet")
    pl.concat([frame, frame.filter(pl.col("id") == "post-of-bob-121")]).write_parquet(tmp_path / "source" / "b.parquet")
    now = reopen(ingested)
    build(now, "posts", "b")
    now.store.make(Spec("trunk", None, "1", {}, {}), lambda folder: StageOutput({}))
    done = forget(now, ids=["post-of-bob-121"])
    assert (done.posts, [name.split()[0] for name in done.saw]) == (1, ["trunk"])


def test_old_versions_that_held_them_go_with_the_artifacts_that_needed_them(ingested):
    root = ingested.root
    old = smaller(ingested).need("posts", "b")
    forget(ingested, ids=["post-of-bob-005"])  # of shard a, which was not there when b was first ingested
    assert old.path.exists()
    build(reopen(ingested), "posts", "a")
    pixels = noise(125).tobytes()
    build(smaller(reopen(ingested)), "posts", "a")  # a's rows of today are now under a Lance tag alone
    done = forget(reopen(ingested), ids=["post-of-bob-125"])
    assert done.shards == ["b"]
    assert files_with(root, b"post-of-bob-125") == files_with(root, pixels) == []
    assert not [name for name in lance_tags(tables_in(root).posts) if name.startswith("posts.b.")]
    now = reopen(ingested)
    rows = read_rows(tables_in(root).posts, lance_tag_of("a", now.need("posts", "a").version), "a", ["image"])
    assert len(rows) == 118
    assert len(rows["image"][0].as_py()) == SIZE * SIZE * 3
    assert smaller(now).find("posts", "a") is None, "a's smaller pictures were in a version that held b's post"


def test_a_takedown_works_where_the_source_is_gone(ingested, tmp_path):
    shutil.rmtree(tmp_path / "source")
    assert forget(reopen(ingested), ids=[GONE]).posts == 1
    assert files_with(ingested.root, GONE.encode()) == []


def test_the_list_names_nobody(ingested):
    forget(ingested, ids=[GONE], users=["user-7"])
    data = (ingested.root / "takedowns.parquet").read_bytes()
    assert GONE.encode() not in data
    assert b"user-7" not in data
    book = Takedowns.load(FolderDocuments(ingested.root))
    assert book.holds(GONE)
    assert book.holds("another", "user-7")
    assert not book.holds("another", "user-8")
    assert not book.holds(None, None)
    assert not book.pending


def test_an_ingest_that_was_planned_before_a_takedown_does_not_bring_posts_back(ingested):
    late = smaller(ingested)
    assert late.spec("posts", "a").inputs.get("takedowns") is None
    forget(ingested, ids=[GONE])
    with pytest.raises(ValueError, match="posts:a: posts were taken down after this was planned: run again"):
        build(late, "posts", "a")
    assert files_with(ingested.root, GONE.encode()) == []


def test_a_damaged_list_lets_nobody_in(ingested):
    (ingested.root / "takedowns.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"takedowns.parquet is not readable .* restore it from a backup"):
        reopen(ingested).version("posts", "a")


def test_no_thread_holds_the_list_once_it_is_read(tmp_path, monkeypatch):
    """One that gives it back while the interpreter ends would abort the command after its answer."""
    documents = FolderDocuments(tmp_path)
    written = Takedowns.record(documents, ["a", "b"], ["c"])
    for _ in range(100):
        data = documents.read(NAMES.takedowns)
        monkeypatch.setattr(documents, "read", lambda _, data=data: data)
        before = sys.getrefcount(data)
        assert Takedowns.load(documents) == written
        assert sys.getrefcount(data) == before
        monkeypatch.undo()


def test_what_another_takedown_adds_meanwhile_is_not_lost(tmp_path):
    one = Takedowns.record(FolderDocuments(tmp_path), ["a"], [])
    two = Takedowns.record(FolderDocuments(tmp_path), ["b"], ["ann"])
    two.save(FolderDocuments(tmp_path))
    one.finished().save(FolderDocuments(tmp_path))
    book = Takedowns.load(FolderDocuments(tmp_path))
    assert book.holds("a")
    assert book.holds("b")
    assert book.holds(None, "ann")
    assert book.pending
    two.finished().save(FolderDocuments(tmp_path))
    assert not Takedowns.load(FolderDocuments(tmp_path)).pending


def test_a_shard_that_a_takedown_empties_is_no_obstacle(ingested):
    root = ingested.root
    forget(ingested, users=[f"user-{n}" for n in range(120)] + ["user-ann"])
    again = reopen(ingested)
    for key in ("a", "b"):
        assert build(again, "posts", key).artifact.metadata["accepted"] == 0
    assert not files_with(root, b"post-of-bob")


def test_an_expert_at_the_end_of_a_long_chain_saw_what_the_first_one_saw(tmp_path):
    store, links = Store(tmp_path), 60
    members = {f"e{n:03d}": f"members {n}" for n in range(links)}

    def partition(folder):
        pl.DataFrame({"shard": "s", "id": "seen", "expert": 0, "random": 0}).write_parquet(
            folder / "assignment.parquet"
        )
        return StageOutput({"members": members, "random_members": {"e000": "random"}})

    store.make(Spec("partition", None, "1", {}, {}), partition)
    chain = []
    for name in members.values():
        inputs = {"members": name} | ({"from": chain[-1].version} if chain else {})
        chain.append(store.make(Spec("expert", "e000", "1", {}, inputs), lambda folder: StageOutput({})))
    store.make(Spec("expert", "e001", "1", {}, {"members": "members 1"}), lambda folder: StageOutput({}))  # from none
    saw = networks_that_saw(store, {("s", "seen")})
    assert sorted(a.version for a in saw) == sorted(a.version for a in chain)
