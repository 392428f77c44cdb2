import multiprocessing
import os
import shutil
import socket
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest

from moe_core.errors import LockHeld
from moe_core.processes import this_process
from moe_core.settings import Study
from moe_core.store import pointer
from moe_core.store.artifact import Spec, StageOutput, full_version
from moe_core.store.hashing import content_hash
from moe_core.store.layout import NAMES, Layout
from moe_core.store.locks import exclusive
from moe_core.store.protocols import open_store
from moe_core.store.store import Store

PLAN = Spec("trunk", None, "1", {"lr": 0.1}, {"posts": "aa"})


def write_hello(folder):
    (folder / "hello.txt").write_text("hello")
    return StageOutput({"posts": 3})


def test_version_depends_on_everything_it_is_made_from():
    others = [
        Spec("trunk", None, "2", {"lr": 0.1}, {"posts": "aa"}),
        Spec("trunk", None, "1", {"lr": 0.2}, {"posts": "aa"}),
        Spec("trunk", None, "1", {"lr": 0.1}, {"posts": "bb"}),
        Spec("trunk", "e000", "1", {"lr": 0.1}, {"posts": "aa"}),
    ]
    assert len({PLAN.version, *(p.version for p in others)}) == 5


def test_key_order_does_not_change_a_content_hash():
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})


def test_what_was_made_is_found(tmp_path):
    store = Store(tmp_path)
    assert store.find(PLAN) is None
    made = store.make(PLAN, write_hello)
    assert store.find(PLAN) == made
    assert made.metadata == {"posts": 3}
    assert made.file("hello.txt").read_text() == "hello"


def test_a_failing_writer_leaves_nothing(tmp_path):
    def fail(folder):
        write_hello(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Store(tmp_path).make(PLAN, fail)
    assert list((tmp_path / "trunk").iterdir()) == []


def test_a_flipped_byte_is_refused(tmp_path):
    made = Store(tmp_path).make(PLAN, write_hello)
    (made.path / "hello.txt").write_text("hellO")
    with pytest.raises(ValueError, match="not the file that was written"):
        made.file("hello.txt")


def test_a_changed_manifest_is_refused(tmp_path):
    store = Store(tmp_path)
    manifest = store.make(PLAN, write_hello).path / "artifact.json"
    manifest.write_text(manifest.read_text().replace('"posts": 3', '"posts": 4'))
    with pytest.raises(ValueError, match="checksum does not match"):
        store.find(PLAN)


def test_folders_of_dead_processes_are_swept(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_die_while_writing, args=(tmp_path,))
    process.start()
    process.join()
    assert [p.name.startswith(".part-") for p in (tmp_path / "trunk").iterdir()] == [True]
    made = Store(tmp_path).make(PLAN, write_hello)
    assert list((tmp_path / "trunk").iterdir()) == [made.path]


def _die_while_writing(root):
    Store(root).make(PLAN, lambda folder: os._exit(9))


def test_a_lock_ends_with_its_process(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_die_with_lock, args=(tmp_path,))
    process.start()
    process.join()
    with exclusive(tmp_path / "lock"):
        assert process.exitcode == 9


def _die_with_lock(root):
    with exclusive(root / "lock"):
        os._exit(9)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "7", "{}", '{"checksum": NaN}', "9" * 5000], ids=lambda t: t[:9])
def test_what_is_no_manifest_is_damage_that_is_named(tmp_path, text):
    made = Store(tmp_path).make(PLAN, write_hello)
    (made.path / "artifact.json").write_text(text)
    with pytest.raises(ValueError, match=r"artifact.json is damaged .*: delete .* and run again"):
        Store(tmp_path).find(PLAN)


def test_a_version_may_be_given_by_its_beginning():
    there = ["1f0c8e", "1f0c99", "abc"]
    assert [full_version(start, there, "trunk") for start in ("abc", "a", "1f0c8", "1f0c99")] == [
        "abc",
        "abc",
        "1f0c8e",
        "1f0c99",
    ]
    assert full_version("1f", ["1f", "1fa"], "trunk") == "1f", "a whole one, though another begins so"
    for start, why in (
        ("1f0c", "2 versions of trunk begin with '1f0c': 1f0c8e, 1f0c99: give more of its characters"),
        ("x\n", r"0 versions of trunk begin with 'x\\\\n': there are 1f0c8e, 1f0c99, abc"),
        ("", "3 versions of trunk begin with '': 1f0c8e"),
    ):
        with pytest.raises(ValueError, match=why):
            full_version(start, there, "trunk")
    with pytest.raises(ValueError, match="there are none"):
        full_version("a", [], "trunk")
    with pytest.raises(ValueError, match="1 versions of trunk begin with ''"):
        full_version("", ["abc"], "trunk")
    with pytest.raises(ValueError, match="and 10 more"):
        full_version("v", [f"v{number:02d}" for number in range(30)], "trunk")


def test_the_layout_joins_paths_and_touches_nothing(tmp_path):
    layout = Store(tmp_path / "study").layout
    assert layout.manifest("expert", "e000", "v1") == tmp_path / "study" / "expert" / "e000" / "v1" / "artifact.json"
    assert layout.manifest("trunk", None, "v1").parent == layout.artifact("trunk", None, "v1")
    assert layout.log("expert", "e000").name == "expert.e000.log"
    assert layout.progress("trunk", None).name == "trunk.json"
    assert not (tmp_path / "study").exists()


def test_every_name_of_the_layout_is_another(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", "/elsewhere")
    layout = Layout(tmp_path)
    paths = [path for path in (*vars(layout).values(), layout.used_dagster_home) if isinstance(path, Path)]
    assert len(set(paths)) == len(paths) > 9


def test_a_store_finds_versions_and_keys_by_names_alone(tmp_path):
    store = Store(tmp_path)
    expert = Spec("expert", "e001", "1", {}, {})
    made, other = store.make(expert, write_hello), store.make(PLAN, write_hello)
    (made.path / "artifact.json").write_text("damaged")
    assert (store.keys("expert"), store.keys("partition")) == (["e001"], [])
    assert store.folders("expert") == [made.path]
    assert store.folders("trunk") == [other.path]
    assert store.get("trunk", None, PLAN.version) == other
    assert store.get("trunk", None, "") is None


def test_a_copy_of_an_artifact_under_another_name_is_none(tmp_path):
    made = Store(tmp_path).make(PLAN, write_hello)
    shutil.copytree(made.path, made.path.with_name("backup"))
    assert Store(tmp_path).everything("trunk") == [made]


def test_one_builds_while_others_wait_and_know_for_whom(tmp_path):
    store, waited, order = Store(tmp_path), [], []

    def second():
        with store.building(PLAN, on_wait=waited.append):
            order.append("second")

    with store.building(PLAN, "run 1a2b3c4d-5e6f"):
        builder = store.builder(PLAN)
        thread = threading.Thread(target=second)
        thread.start()
        while not waited:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert (waited, order) == ([builder], ["first", "second"])
    assert store.builder(PLAN) is None
    assert builder.process == this_process()
    since = datetime.fromtimestamp(builder.since).isoformat(" ", "minutes")
    assert str(builder) == f"built on {socket.gethostname()} by run 1a2b3c4d (process {os.getpid()}), since {since}"


def test_nothing_is_deleted_while_something_is_built_or_must_stay(tmp_path):
    store = Store(tmp_path)
    for held in (store.building(PLAN), store.keeping()):
        with held, pytest.raises(LockHeld), store.deleting(wait=False):
            pass
    with store.deleting(wait=False):
        pass


def test_a_local_folder_gives_all_that_the_protocols_ask(tmp_path):
    store = open_store(Study(), root=tmp_path)
    made = store.make(PLAN, write_hello)
    assert (store.find(PLAN), store.keys("trunk"), store.versions("trunk", None)) == (made, [], [made])
    assert (store.listed("trunk"), store.exists("trunk", None, made.version)) == ([(None, made.version)], True)
    current = NAMES.current("trunk", "line")
    pointer.write(store.documents, current, {"trunk": made.version})
    assert pointer.read(store.documents, current) == {"trunk": made.version}
    store.remove(made)
    assert store.everything("trunk") == []
