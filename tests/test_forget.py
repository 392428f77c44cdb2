"""Takedown: what is forgotten leaves the disk, stays away, and is known to have been seen by the right networks."""

import io
import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from PIL import Image

from helpers.plain import make_everything
from moe_core.data.takedowns import Forgotten, lines_of
from moe_core.engine.context import Context
from moe_core.engine.stage import build
from moe_core.errors import LockHeld
from moe_core.maintenance.takedown import forget
from moe_core.maintenance.verify import Damage, verify
from moe_core.recipes import demo
from moe_core.settings import Data, Network, Partition, Source, Training, dump_study, load_study
from moe_core.stages.graph import GRAPH
from moe_core.store.artifact import Spec, StageOutput
from moe_core.store.locks import shared
from moe_core.tables import pin_of, pins, read_rows, unpin, write_vectors
from test_traces import FORMS, ODD

SIZE = 16
GONE = "post-of-ann-000"  # ann's posts: 0 to 3 of shard a, 0 of shard b, and one that is rejected
QUICK = Training(epochs=1, batch_size=32, flip=False, crop=1)


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pixels_on_disk(seed):
    return noise(seed).tobytes()


def write_source(folder, posts=120, first=0):
    folder.mkdir(exist_ok=True)
    for shard, number in (("a", 0), ("b", 1)):
        rows = []
        for n in range(posts):
            ann = n < 4 if shard == "a" else n == 0
            name = f"post-of-{'ann' if ann else 'bob'}-{number * posts + n:03d}"
            image = png(noise(number * posts + n)) if (shard, n) != ("a", 3) else b"broken image"
            split = "train" if n % 10 else "test"
            split = "validation" if n % 10 == 5 else split
            split = "train" if n < 4 else split
            tags = [["cat", "dog", "cow"][n % 3]]
            user = "user-ann" if ann else f"user-{n}"
            rows.append({"id": name, "image": image, "tags": tags, "user": user, "split": split})
        pl.DataFrame(rows).write_parquet(folder / f"{shard}.parquet")
    return Source(format="parquet", uri=str(folder))


def small_study(source, **more):
    values = {
        "name": "takedown",
        "source": source,
        "data": Data(image_size=SIZE, min_posts_per_tag=1, validation=0.0, max_reject_rate=1),
        "network": Network(widths=(4, 8), depths=(1, 1), embedding=16),
        "trunk": QUICK,
        "expert_training": QUICK,
        "partition": Partition(experts=2, pca=8),
        "evaluation": demo().evaluation.model_copy(update={"controls": False, "bootstrap": 20}),
    }
    return demo().model_copy(update=values | more)


def hardmoe(*arguments, check=True):
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
    command = [sys.executable, "-m", "pipelines.cli.main", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def files_with(root, text):
    """Every file on the disk that holds the bytes."""
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and text in p.read_bytes())


def states(study_file):
    rows = json.loads(hardmoe("status", "--study", study_file, "--json").stdout)["assets"]
    return {(row["asset"], row["key"]): row for row in rows}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    study = small_study(write_source(folder / "source"))
    (folder / "store").mkdir()
    (folder / "store" / "study.toml").write_text(dump_study(study), "utf-8")
    make_everything(folder / "store" / "study.toml")
    return folder / "store"


@pytest.mark.slow
def test_a_takedown_from_the_command_to_the_retrained_mixture(trained, tmp_path):
    root = tmp_path / "store"
    shutil.copytree(trained, root)
    study_file = root / "study.toml"
    before = Context(load_study(study_file), root)
    assignment = pl.read_parquet(before.need("partition").file("assignment.parquet"))
    expert = f"e{assignment.filter(pl.col('id') == GONE)['expert'].item():03d}"
    other = "e001" if expert == "e000" else "e000"
    old = {key: before.need("expert", key) for key in before.experts}
    (tmp_path / "ids").write_text(f"{GONE}\nnobody-knows-this\n")
    assert files_with(root, GONE.encode())
    assert files_with(root, pixels_on_disk(0))
    assert files_with(root, pixels_on_disk(1))

    dry = json.loads(hardmoe("forget", "--study", study_file, "--ids", tmp_path / "ids", "--dry-run", "--json").stdout)
    assert not (root / "forgotten.parquet").exists()
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
    assert found["posts", "a"]["why"] == "posts were forgotten"
    assert found["posts", "b"]["state"] == "fresh"
    for name, key in (("trunk", None), ("expert", expert), ("shared_decoder", None), ("mixture", None)):
        assert found[name, key]["state"] == "stale", name
        assert found[name, key]["why"].startswith("forgotten posts; "), name
    assert found["expert", other]["state"] == "stale"
    assert not found["expert", other]["why"].startswith("forgotten posts")

    make_everything(study_file)
    assert {row["state"] for row in states(study_file).values()} == {"fresh"}
    counts = json.loads(hardmoe("status", "--study", study_file, "--json").stdout)["posts"]
    assert counts["rejects_by_reason"] == {"forgotten": 1, "not_an_image": 1}
    assert counts["accepted"] + counts["rejected"] == counts["read"] == 240
    assert files_with(root, GONE.encode()) == []
    assert files_with(root, pixels_on_disk(0)) == []

    again = json.loads(hardmoe("forget", "--study", study_file, "--ids", tmp_path / "ids", "--apply", "--json").stdout)
    assert (again["posts"], again["removed"]) == (0, [])
    assert {row["state"] for row in states(study_file).values()} == {"fresh"}


@pytest.fixture
def ingested(tmp_path):
    """Posts of two shards, an artifact of features of each, an older artifact of shard b, a log that names a post."""
    context = Context(small_study(write_source(tmp_path / "source")), tmp_path / "store")
    context.root.mkdir()
    build(smaller(context), GRAPH["posts"], "b")
    for key in ("a", "b"):
        build(context, GRAPH["posts"], key)
        write_features(context, key)
    (context.root / "logs").mkdir()
    (context.root / "logs" / "posts.a.log").write_text(f"for example {GONE}: no_tags")
    (context.root / "study.toml").write_text(dump_study(context.study))
    return context


def write_features(context, key):
    import pyarrow as pa

    names = pl.read_parquet(f"{context.study.source.uri}/{key}.parquet")["id"]

    def write(folder):
        parts = [({"id": pa.array(names.to_list())}, np.eye(len(names)))]
        write_vectors(folder / "features.lance", {"id": pa.string()}, "feature", len(names), parts, index=False)
        return StageOutput({})

    context.store.make(Spec("trunk_features", key, "1", {}, {"posts": context.version("posts", key)}), write)


def reopen(context):
    return Context(context.study, context.root)


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
    kept = pins(now.root / "posts.lance")
    assert [name for name in kept if name.startswith("posts.b.")], "b's rows are still pinned"
    assert not [name for name in kept if name.startswith("posts.a.")]


def test_after_a_takedown_nothing_is_damaged_before_the_next_run_and_after_it(ingested):
    old = ingested.need("posts", "a")
    forget(ingested, ids=[GONE])
    assert not [one for one in verify(reopen(ingested)) if isinstance(one, Damage)]
    build(reopen(ingested), GRAPH["posts"], "a")
    found = list(verify(reopen(ingested)))
    assert not [one for one in found if isinstance(one, Damage)]
    assert old in found, "what is left of it is read"
    now = reopen(ingested).need("posts", "a")
    unpin(ingested.root / "posts.lance", pin_of("a", now.version))
    assert [one.folder for one in verify(reopen(ingested)) if isinstance(one, Damage)] == [now.path]


def test_the_forgotten_do_not_come_back_and_their_reject_names_nobody(ingested):
    import lance

    forget(ingested, ids=[GONE])
    now = reopen(ingested)
    made = build(now, GRAPH["posts"], "a").artifact
    assert made.metadata["reasons"] == {"forgotten": 1, "not_an_image": 1}
    assert made.metadata["read"] == made.metadata["accepted"] + made.metadata["rejected"] == 120
    (row,) = lance.dataset(str(now.root / "rejects.lance")).to_table(filter="reason = 'forgotten'").to_pylist()
    assert {name: row[name] for name in row if name not in ("shard", "source")} == {
        "position": 0,
        "id": None,
        "user": None,
        "written": None,
        "reason": "forgotten",
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
    made = build(reopen(ingested), GRAPH["posts"], "c").artifact
    assert made.metadata["reasons"] == {"forgotten": 1}


def test_a_rejected_duplicate_does_not_hide_the_accepted_post(ingested, tmp_path):
    frame = pl.read_parquet(tmp_path / "source" / "b.parquet")
    pl.concat([frame, frame.filter(pl.col("id") == "post-of-bob-121")]).write_parquet(tmp_path / "source" / "b.parquet")
    now = reopen(ingested)
    build(now, GRAPH["posts"], "b")
    now.store.make(Spec("trunk", None, "1", {}, {}), lambda folder: StageOutput({}))
    done = forget(now, ids=["post-of-bob-121"])
    assert (done.posts, [name.split()[0] for name in done.saw]) == (1, ["trunk"])


def smaller(context):
    return Context(context.study.model_copy(update={"data": Data(image_size=8, max_reject_rate=1)}), context.root)


def test_old_versions_that_held_them_go_with_the_artifacts_that_needed_them(ingested):
    root = ingested.root
    old = smaller(ingested).need("posts", "b")
    forget(ingested, ids=["post-of-bob-005"])  # of shard a, which was not there when b was first ingested
    assert old.path.exists()
    build(reopen(ingested), GRAPH["posts"], "a")
    pixels = noise(125).tobytes()
    build(smaller(reopen(ingested)), GRAPH["posts"], "a")  # a's rows of today are now under a pin alone
    done = forget(reopen(ingested), ids=["post-of-bob-125"])
    assert done.shards == ["b"]
    assert files_with(root, b"post-of-bob-125") == files_with(root, pixels) == []
    assert not [name for name in pins(root / "posts.lance") if name.startswith("posts.b.")]
    now = reopen(ingested)
    rows = read_rows(root / "posts.lance", pin_of("a", now.need("posts", "a").version), "a", ["image"])
    assert len(rows) == 118
    assert len(rows["image"][0].as_py()) == SIZE * SIZE * 3
    assert smaller(now).find("posts", "a") is None, "a's smaller pictures were in a version that held b's post"


def test_a_takedown_works_where_the_source_is_gone(ingested, tmp_path):
    shutil.rmtree(tmp_path / "source")
    assert forget(reopen(ingested), ids=[GONE]).posts == 1
    assert files_with(ingested.root, GONE.encode()) == []


def test_the_list_names_nobody(ingested):
    forget(ingested, ids=[GONE], users=["user-7"])
    data = (ingested.root / "forgotten.parquet").read_bytes()
    assert GONE.encode() not in data
    assert b"user-7" not in data
    book = Forgotten.load(ingested.root)
    assert book.holds(GONE)
    assert book.holds("another", "user-7")
    assert not book.holds("another", "user-8")
    assert not book.holds(None, None)
    assert not book.pending


def test_an_ingest_that_was_planned_before_a_takedown_does_not_bring_posts_back(ingested):
    late = smaller(ingested)
    assert late.plan("posts", "a").inputs.get("forgotten") is None
    forget(ingested, ids=[GONE])
    with pytest.raises(ValueError, match="posts:a: posts were forgotten after this was planned: run again"):
        build(late, GRAPH["posts"], "a")
    assert files_with(ingested.root, GONE.encode()) == []


def test_a_damaged_list_lets_nobody_in(ingested):
    (ingested.root / "forgotten.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"forgotten.parquet is not readable .* restore it from a backup"):
        reopen(ingested).version("posts", "a")


def _die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def _killed_at(study, root, point):
    from moe_core import tables
    from moe_core.maintenance import takedown

    if point == "after the logs":
        takedown._clear_tables = _die
    elif point == "before the commit":
        tables.shards._swap = _die
    elif point == "between posts and rejects":
        clean, calls = tables.clean, []

        def once(path, *more, **others):
            calls.append(path)
            return clean(path, *more, **others) if len(calls) < 2 else _die()

        tables.clean = once
    elif point == "before the pins":
        tables.release = _die
    elif point == "before the clean-up":
        tables.clean = _die
    elif point == "in an artifact":
        takedown.remove_atomically = _die
    elif point == "before the logs":
        takedown._clear_logs = _die
    elif point == "before it is done":
        Forgotten.finished = _die
    forget(Context(study, root), ids=[GONE], users=["user-ann"])


POINTS = [
    "before the logs",
    "after the logs",
    "before the commit",
    "between posts and rejects",
    "before the pins",
    "before the clean-up",
    "in an artifact",
    "before it is done",
]


@pytest.mark.parametrize("point", POINTS)
def test_a_takedown_killed_at_any_point_is_finished_by_the_next(ingested, point):
    root = ingested.root
    process = multiprocessing.get_context("spawn").Process(target=_killed_at, args=(ingested.study, root, point))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert Forgotten.load(root).pending
    assert reopen(ingested).find("posts", "a") is None, "nobody reads what is to go"
    forget(reopen(ingested))
    assert not Forgotten.load(root).pending
    assert files_with(root, b"post-of-ann") == []
    assert files_with(root, pixels_on_disk(0)) == files_with(root, pixels_on_disk(120)) == []
    made = build(reopen(ingested), GRAPH["posts"], "a").artifact
    assert made.metadata["reasons"] == {"forgotten": 4}


def test_while_an_artifact_is_made_it_is_written_down_and_done_later(ingested):
    with shared(ingested.in_use), pytest.raises(LockHeld, match="written down and nothing is removed yet"):
        forget(ingested, ids=[GONE])
    assert Forgotten.load(ingested.root).pending
    assert files_with(ingested.root, pixels_on_disk(0))
    done = forget(reopen(ingested))
    assert done.posts == 1
    assert files_with(ingested.root, pixels_on_disk(0)) == []


@pytest.mark.slow
def test_a_run_first_finishes_a_takedown_that_had_to_wait(ingested):
    with shared(ingested.in_use), pytest.raises(LockHeld):
        forget(ingested, ids=[GONE])
    study_file = ingested.root / "study.toml"
    assert "A takedown is not finished: hardmoe forget" in hardmoe("status", "--study", study_file).stdout
    done = hardmoe("run", "--study", study_file, "--until", "posts")
    assert "1 posts of 1 shards removed" in done.stdout
    assert not Forgotten.load(ingested.root).pending
    assert files_with(ingested.root, GONE.encode()) == []
    assert reopen(ingested).need("posts", "a").metadata["reasons"]["forgotten"] == 1


def test_the_command_reports_what_is_left_and_a_file_that_is_not_there(ingested, tmp_path):
    study_file = ingested.root / "study.toml"
    wrong = hardmoe("forget", "--study", study_file, "--ids", tmp_path / "none", check=False)
    assert wrong.returncode == 1
    assert "is not a readable text file of one id or user a line" in wrong.stderr
    (tmp_path / "ids").write_text(GONE)
    (ingested.root / "dagster").mkdir()
    (ingested.root / "dagster" / "events").write_text(f"{GONE}: no_tags")
    done = hardmoe("forget", "--study", study_file, "--ids", tmp_path / "ids", "--apply", check=False)
    assert done.returncode == 1
    assert "1 places still name what was forgotten: dagster/events" in done.stderr


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
        ("ids.json", '{"a": 1}', "wanted a JSON list of strings"),
        ("ids.json", "[true]", "wanted a JSON list of strings"),
        ("ids.json", "[[1]]", "wanted a JSON list of strings"),
        ("ids.json", "a\nb", "is not a readable JSON list"),
        ("ids.json", "[" * 100_000, "is not a readable JSON list"),
        ("ids.jsonl", "a\n", "is not a readable file of JSON strings"),
        ("ids.json", "[]", "names nobody"),
        ("ids.txt", "\n \n", "names nobody"),
    ],
)
def test_a_file_that_names_nobody_or_is_no_json_is_refused(tmp_path, name, text, why):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=why):
        lines_of(tmp_path / name)


def test_what_another_takedown_adds_meanwhile_is_not_lost(tmp_path):
    one = Forgotten.begin(tmp_path, ["a"], [])
    two = Forgotten.begin(tmp_path, ["b"], ["ann"])
    two.save(tmp_path)
    one.finished().save(tmp_path)
    book = Forgotten.load(tmp_path)
    assert book.holds("a")
    assert book.holds("b")
    assert book.holds(None, "ann")
    assert book.pending
    two.finished().save(tmp_path)
    assert not Forgotten.load(tmp_path).pending


def test_a_shard_that_a_takedown_empties_is_no_obstacle(ingested):
    root = ingested.root
    forget(ingested, users=[f"user-{n}" for n in range(120)] + ["user-ann"])
    again = reopen(ingested)
    for key in ("a", "b"):
        assert build(again, GRAPH["posts"], key).artifact.metadata["accepted"] == 0
    assert not files_with(root, b"post-of-bob")


IDS = {name: text for name, text in ODD.items() if name not in ("one letter", "a name that is no UTF-8")}
NEIGHBOURS = ["7", "1234567", "123456", "post-1", "post-11"]  # ids that are parts of others, and of numbers


def odd_study(folder):
    """A study whose posts have odd ids: each once with a picture, once without, as a reject that its manifest names."""
    rows = []
    for n, name in enumerate([*IDS.values(), *NEIGHBOURS, *(f"other-{k:03d}" for k in range(40))]):
        image = png(noise(n))
        rows.append({"id": name, "image": image, "tags": ["cat"], "user": f"user-{n}"})
        rows.append({"id": f"{name}+rejected", "image": image, "tags": [], "user": f"user-{n}"})
    (folder / "source").mkdir()
    pl.DataFrame(rows).write_parquet(folder / "source" / "a.parquet")
    study = small_study(Source(format="parquet", uri=str(folder / "source")))
    (folder / "store").mkdir()
    (folder / "store" / "study.toml").write_text(dump_study(study))
    context = Context(study, folder / "store")
    build(context, GRAPH["posts"], "a")
    return context


def forms_on_disk(folder, texts):
    """(file, text) of every file that says a text, in any of the forms that encoders give it."""
    forms = {form(text): text for text in texts for form in FORMS.values()}
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {(str(p.relative_to(folder)), t) for p in files for form, t in forms.items() if form in p.read_bytes()}


def test_odd_ids_leave_no_trace_and_no_other_post_goes(tmp_path):
    root = odd_study(tmp_path).root
    (root / "logs").mkdir(exist_ok=True)
    for n, text in enumerate(IDS.values()):
        (root / "logs" / f"{n}.log").write_text(f"Traceback: {json.dumps(text)}: no_tags", "utf-8")
    dead = root / "posts" / "a" / ".part-a-container-that-is-gone-12-abcdef"
    shutil.copytree(next(path for path in (root / "posts" / "a").iterdir() if not path.name.startswith(".")), dead)
    (dead / "counts.json").write_text(json.dumps({"examples": [[0, text[:80], ""] for text in IDS.values()]}))
    gone = [name for text in IDS.values() for name in (text, f"{text}+rejected")]
    (tmp_path / "ids.json").write_text(json.dumps(gone))
    assert {text for _, text in forms_on_disk(root, gone)} >= set(IDS.values())

    command = ("forget", "--study", root / "study.toml", "--ids", tmp_path / "ids.json", "--json")
    seen = json.loads(hardmoe(*command, "--dry-run").stdout)
    assert seen["posts"] == len(gone) - 1, "of ids of more than 512 characters, two begin alike"
    assert dead.exists()
    done = json.loads(hardmoe(*command, "--apply").stdout)
    assert (done["posts"], done["unknown"], done["left"]) == (seen["posts"], [], [])
    assert forms_on_disk(root, gone) == set()
    assert not dead.exists()
    assert set(lance_ids(root / "posts.lance")) == {*NEIGHBOURS, *(f"other-{k:03d}" for k in range(40))}
    made = build(Context(load_study(root / "study.toml"), root), GRAPH["posts"], "a").artifact
    assert made.metadata["reasons"]["forgotten"] == len(gone)
    assert forms_on_disk(root, gone) == set()


def lance_ids(path):
    import lance

    return lance.dataset(str(path)).to_table(columns=["id"])["id"].to_pylist()


@pytest.mark.parametrize("text", ["7", "1234567", "123456", "post-1"])
def test_an_id_inside_of_other_ids_and_numbers_gives_no_false_alarm(tmp_path, text):
    root = odd_study(tmp_path).root
    (tmp_path / "ids").write_text(text)
    (root / "notes.txt").write_text("7 posts of 0.1234567, 1234567890 and post-1-b, post-11\n")
    done = hardmoe("forget", "--study", root / "study.toml", "--ids", tmp_path / "ids", "--apply", "--json")
    assert json.loads(done.stdout)["left"] == []
    kept = set(lance_ids(root / "posts.lance"))
    assert kept >= {*NEIGHBOURS} - {text}
    assert text not in kept


def test_what_lies_beside_the_stores_is_named_with_its_place(ingested, tmp_path):
    root = ingested.root
    (root / "export").mkdir()
    (root / "export" / "notes.md").write_text("about %70ost-of-ann-000: café")
    (root / "export" / "more.json").write_text(json.dumps({"id": "café-of-ann"}))
    (tmp_path / "ids").write_text(f"{GONE}\ncafé-of-ann\n")
    command = ("forget", "--study", root / "study.toml", "--ids", tmp_path / "ids", "--apply")
    done = hardmoe(*command, check=False)
    assert done.returncode == 1
    assert "2 places still name what was forgotten: export/more.json; export/notes.md" in done.stderr
    shutil.rmtree(root / "export")
    assert hardmoe(*command).stderr == ""


def test_dagsters_database_is_searched_and_what_it_deleted_is_overwritten(ingested, tmp_path, monkeypatch):
    import dagster as dg

    from pipelines import instance

    text = 'café "1" of-ann' + "-é" * 3000  # longer than a page
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    home = instance.home(ingested.root, 1)
    with instance.opened() as dagster:
        dagster.add_run(run := dg.DagsterRun("__ASSET_JOB", status=dg.DagsterRunStatus.FAILURE))
        dagster.report_engine_event(f"ValueError: {text} is odd", run)
    (tmp_path / "ids.json").write_text(json.dumps([text]))
    command = ("forget", "--study", ingested.root / "study.toml", "--ids", tmp_path / "ids.json", "--apply")
    done = hardmoe(*command, check=False)
    assert done.returncode == 1
    assert f"dagster/history/runs/{run.run_id}.db (runs {run.run_id})" in done.stderr
    with instance.opened() as dagster:
        dagster.delete_run(run.run_id)
    database = sqlite3.connect(home / "history" / "runs.db", isolation_level=None)
    database.execute("PRAGMA secure_delete = OFF")  # as in most builds of SQLite: what is deleted stays in its pages
    database.execute("CREATE TABLE scratch (text)")
    database.executemany("INSERT INTO scratch VALUES (?)", [(json.dumps(text),)] * 5)
    database.execute("DELETE FROM scratch")
    database.close()
    beginning = json.dumps('café "1" of-ann').strip('"').encode()
    assert files_with(home, beginning) == ["history/runs.db"], "in pages that the database does not use any more"
    assert hardmoe(*command).stderr == ""
    assert files_with(home, beginning) == []


def test_databases_of_dagster_that_lie_elsewhere_are_searched_too(ingested, tmp_path):
    import dagster as dg

    from moe_core.data.traces import Traces
    from pipelines.instance import places_that_say

    (tmp_path / "home").mkdir()
    settings = f"storage: {{sqlite: {{base_dir: {tmp_path / 'elsewhere'}}}}}\ntelemetry: {{enabled: false}}\n"
    (tmp_path / "home" / "dagster.yaml").write_text(settings)
    with dg.DagsterInstance.from_config(str(tmp_path / "home")) as dagster:
        dagster.add_run(run := dg.DagsterRun("__ASSET_JOB", status=dg.DagsterRunStatus.FAILURE))
        dagster.report_engine_event("ValueError: post-é-of-ann is odd", run)
        dagster.add_run_tags(run.run_id, {"who": "user-é-ann"})
        assert places_that_say(dagster, Traces(["post-é-of-bob"]), tmp_path / "home") == []
        (event,) = places_that_say(dagster, Traces(["post-é-of-ann"]), tmp_path / "home")
        (tag,) = places_that_say(dagster, Traces(["user-é-ann"]), tmp_path / "home")
    folder = tmp_path / "elsewhere" / "history"
    assert event == f"{folder / 'runs' / run.run_id}.db (runs {run.run_id})"
    assert tag == f"{folder / 'runs.db'} (runs {run.run_id})"


def test_a_database_that_cannot_be_searched_is_named(ingested):
    runs = ingested.root / "dagster" / "history" / "runs.db"
    runs.parent.mkdir(parents=True)
    runs.write_bytes(b"SQLite format 3\0" + b"damaged" * 100)
    assert forget(ingested, ids=[GONE]).left == ["dagster/history/runs.db (cannot be searched: file is not a database)"]


def test_caches_and_logs_go_by_ids_however_short(ingested):
    root = ingested.root
    (root / ".sources").mkdir()
    with sqlite3.connect(root / ".sources" / "tars.sqlite") as index:
        index.execute("CREATE TABLE members (stem TEXT, path TEXT, name TEXT, offset INT, size INT)")
        index.execute("INSERT INTO members VALUES ('77', 'a.tar', '77.jpg', 7, 8)")
    index.close()
    done = forget(ingested, ids=["8"])
    assert (root / ".sources").exists()
    assert done.not_searched == ["8"]
    assert not (root / "logs" / "posts.a.log").exists(), "nobody can tell whether it names 8"
    assert ".sources" in forget(reopen(ingested), ids=["77"]).removed


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
    assert not (ingested.root / "forgotten.parquet").exists()
    both = hardmoe(*command, "--ids", tmp_path / "ids", "--apply", "--dry-run", check=False)
    assert "--apply and --dry-run exclude each other" in both.stderr
