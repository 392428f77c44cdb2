"""After a takedown no file, log or database names the posts, however their ids are written."""

import json
import shutil
import sqlite3

import polars as pl
import pytest

from helpers.command import hardmoe
from helpers.escapes import FORMS, ODD
from helpers.takedown import GONE, files_with, noise, png, reopen, study_of_two_users, two_shards
from moe_core.engine.build import build
from moe_core.maintenance.takedown import forget
from moe_core.settings import Source
from moe_core.study_file import dump_study, load_study
from moe_core.workspace import open_study


@pytest.fixture
def ingested(tmp_path):
    return two_shards(tmp_path)


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
    study = study_of_two_users(Source(format="parquet", uri=str(folder / "source")))
    (folder / "store").mkdir()
    (folder / "store" / "study.toml").write_text(dump_study(study))
    context = open_study(study, folder / "store")
    build(context, "posts", "a")
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
    made = build(open_study(load_study(root / "study.toml"), root), "posts", "a").artifact
    assert made.metadata["reasons"]["taken_down"] == len(gone)
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
    assert "2 places still name what was taken down: export/more.json; export/notes.md" in done.stderr
    shutil.rmtree(root / "export")
    assert hardmoe(*command).stderr == ""


def test_dagsters_database_is_searched_and_what_it_deleted_is_overwritten(ingested, tmp_path, monkeypatch):
    import dagster as dg

    from pipelines.instance.home import prepare_home
    from pipelines.instance.opening import opened

    text = 'café "1" of-ann' + "-é" * 3000  # longer than a page
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    home = prepare_home(ingested.root, 1)
    with opened() as dagster:
        dagster.add_run(run := dg.DagsterRun("__ASSET_JOB", status=dg.DagsterRunStatus.FAILURE))
        dagster.report_engine_event(f"ValueError: {text} is odd", run)
    (tmp_path / "ids.json").write_text(json.dumps([text]))
    command = ("forget", "--study", ingested.root / "study.toml", "--ids", tmp_path / "ids.json", "--apply")
    done = hardmoe(*command, check=False)
    assert done.returncode == 1
    assert f"dagster/history/runs/{run.run_id}.db (runs {run.run_id})" in done.stderr
    with opened() as dagster:
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
    from pipelines.instance.search import find_places

    (tmp_path / "home").mkdir()
    settings = f"storage: {{sqlite: {{base_dir: {tmp_path / 'elsewhere'}}}}}\ntelemetry: {{enabled: false}}\n"
    (tmp_path / "home" / "dagster.yaml").write_text(settings)
    with dg.DagsterInstance.from_config(str(tmp_path / "home")) as dagster:
        dagster.add_run(run := dg.DagsterRun("__ASSET_JOB", status=dg.DagsterRunStatus.FAILURE))
        dagster.report_engine_event("ValueError: post-é-of-ann is odd", run)
        dagster.add_run_tags(run.run_id, {"who": "user-é-ann"})
        assert find_places(dagster, Traces(["post-é-of-bob"]), tmp_path / "home") == []
        (event,) = find_places(dagster, Traces(["post-é-of-ann"]), tmp_path / "home")
        (tag,) = find_places(dagster, Traces(["user-é-ann"]), tmp_path / "home")
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
