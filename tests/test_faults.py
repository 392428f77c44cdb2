"""Failing writes and stages, full disks, flipped bytes, clocks that step back: docs/reference/faults.md."""

import builtins
import errno
import io
import itertools
import multiprocessing
import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from helpers.kills import study
from moe_core import failpoints
from moe_core.data.takedowns import Forgotten
from moe_core.engine.context import Context
from moe_core.engine.stage import build
from moe_core.maintenance.verify import Damage, verify
from moe_core.models.resnet import build as build_network
from moe_core.serving.bundle import Bundle
from moe_core.settings import Network, Partition, dump_study
from moe_core.stages.graph import GRAPH
from moe_core.store.artifact import Artifact, Spec, StageOutput
from moe_core.store.files import write_text
from moe_core.store.store import Store
from moe_core.training.checkpoint import load_checkpoint, save_checkpoint
from moe_core.weights import load_weights

PLAN = Spec("trunk", None, "1", {}, {})


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARDMOE_THREADS", "1")
        yield


def tasks(context):
    return [(s, key) for s in GRAPH.values() if not s.control for key in s.keys_of(context)]


def make_all(context):
    """Digest of each artifact, and what of it was made now."""
    built = {(s.name, key): build(context, s, key) for s, key in tasks(context)}
    return {name: b.artifact.content_hash for name, b in built.items()}, [n for n, b in built.items() if not b.reused]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("finished")
    (root / "study.toml").write_text(dump_study(study()), "utf-8")
    make_all(Context(study(), root))
    return root


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    return Context(study(), tmp_path / "copy")


# The n-th call fails


class Counted:
    """A file whose writes are counted."""

    def __init__(self, file, passes):
        self._file, self._passes = file, passes

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *said):
        self._file.close()

    def write(self, data):
        self._passes(None)
        return self._file.write(data)


@contextmanager
def failing(nth, number, root):
    """The n-th open, mkdir, rename, write or fsync under `root` fails. Yields a list that has the call, once it did."""
    calls, hit = itertools.count(1), []

    def passes(path, what="write"):
        if next(calls) == nth:
            hit.append(what)
            raise OSError(number, os.strerror(number), *([str(path)] if path else []))

    def counted(call, what, names_path=True):
        def wrapped(*arguments, **more):
            if not names_path or str(arguments[0]).startswith(str(root)):
                passes(arguments[0] if names_path else None, what)
            return call(*arguments, **more)

        return wrapped

    def opened(path, mode="r", *arguments, **more):
        mine = str(path).startswith(str(root))
        if mine:
            passes(path, "open")
        file = real(path, mode, *arguments, **more)
        return Counted(file, passes) if mine and mode != "r" and mode != "rb" else file

    real = builtins.open
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "open"):
            patch.setattr(os, name, counted(getattr(os, name), name))
        for name in ("fsync", "sendfile"):
            patch.setattr(os, name, counted(getattr(os, name), name, names_path=False))
        patch.setattr(builtins, "open", opened)
        patch.setattr(io, "open", opened)
        yield hit


def until_it_succeeds(root, work, check):
    """Lets the first call fail, then the second, ...; `check(error or None)` after each. Returns how many there are."""
    for nth in range(1, 400):
        error = None
        with failing(nth, (errno.EIO, errno.ENOSPC)[nth % 2], root) as hit:
            try:
                work()
            except (OSError, ValueError) as raised:
                error = raised
        check(error)
        if not hit:
            assert error is None
            return nth - 1
        if error:
            assert str(root) in str(error), f"{error!r} names no file ({hit})"
            assert os.strerror((errno.EIO, errno.ENOSPC)[nth % 2]) in str(error)
    raise AssertionError("it never succeeds")


def files(root):
    return [path for path in root.rglob("*") if path.is_file()]


def test_any_call_of_a_commit_may_fail_and_nothing_is_half_there(tmp_path):
    store = Store(tmp_path)

    def write(folder):
        (folder / "deep").mkdir()
        (folder / "deep" / "a.txt").write_text("a")
        write_text(folder / "b.txt", "b")
        return StageOutput({})

    def work():
        shutil.rmtree(tmp_path / "trunk", ignore_errors=True)
        store.make(PLAN, write)

    def check(error):
        made = store.versions("trunk", None)
        assert error or made
        for artifact in made:  # also where only what follows the commit failed
            assert {artifact.file(name).read_text() for name in ("deep/a.txt", "b.txt")} == {"a", "b"}
        assert [p for p in tmp_path.glob("trunk/*") if p.name.startswith(".part")] == []

    assert until_it_succeeds(tmp_path, work, check) > 15


def test_any_call_of_a_write_may_fail_and_the_old_text_stays(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")

    def check(error):
        assert file.read_text() == ("old" if error else "new")
        assert files(tmp_path) == [file]

    assert until_it_succeeds(tmp_path, lambda: write_text(file, "new"), check) == 5


def test_any_call_of_a_checkpoint_may_fail_and_the_old_one_stays(tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    model = build_network(Network(widths=(4,), depths=(1,), embedding=8), 3, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    save_checkpoint(file, model, optimizer, 1, 9)

    def check(error):
        assert load_checkpoint(file, model, optimizer, 9) == (1 if error else 2)
        assert files(tmp_path) == [file]
        save_checkpoint(file, model, optimizer, 1, 9)

    until_it_succeeds(tmp_path, lambda: save_checkpoint(file, model, optimizer, 2, 9), check)


@pytest.mark.parametrize(
    ("name", "key"), [("posts", "s0001"), ("vocabulary", None), ("expert", "e001"), ("mixture", None)]
)
def test_any_call_of_a_stage_may_fail_and_the_next_run_makes_the_same(copied, name, key):
    stage, wanted = GRAPH[name], copied.need(name, key)
    context = Context(copied.study, copied.root)
    context.plan(name, key)

    def work():
        shutil.rmtree(wanted.path, ignore_errors=True)
        build(context, stage, key)

    def check(error):
        there = context.store.versions(name, key)
        assert there or error
        for artifact in there:
            assert artifact.content_hash == wanted.content_hash
            for file in artifact.files:
                artifact.file(file)

    assert until_it_succeeds(copied.root, work, check) > 10
    assert not [one for one in verify(context) if isinstance(one, Damage)]


def test_points_fail_as_they_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(failpoints, "armed", failpoints.parse("enospc file.half 2 b.txt"))
    write_text(tmp_path / "a.txt", "a")
    write_text(tmp_path / "b.txt", "old")
    with pytest.raises(OSError, match=r"No space left on device: '.*b\.txt'"):
        write_text(tmp_path / "b.txt", "new")
    assert (tmp_path / "b.txt").read_text() == "old"
    with pytest.raises(ValueError, match=r"wanted `kill\|eio\|enospc point"):
        failpoints.parse("sing loudly")


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk, free):
    """Leaves so many bytes of the disk."""
    there = os.statvfs(disk)
    with open(disk / f"ballast{time.monotonic_ns()}", "wb") as file:
        file.write(bytes(max(0, there.f_bavail * there.f_frsize - free)))


def test_on_a_full_disk_every_stage_says_so_and_goes_on_when_there_is_room(small_disk, finished):
    """First no byte is free, then 32 KiB more each time that it is full."""
    root = small_disk / "study"
    root.mkdir()
    wanted, _ = make_all(Context(study(), finished))
    fill(small_disk, 0)
    failed, before = [], {}
    for _ in range(100):
        context = Context(study(), root)
        try:
            found, _ = make_all(context)
            break
        except OSError as error:
            failed.append(str(error))
        now = {a.path: a.files for a in (context.store.everything(name) for name in GRAPH) for a in a}
        assert before.items() <= now.items()
        for artifact in (a for name in GRAPH for a in context.store.everything(name)):
            for file in artifact.files:
                artifact.file(file)
        before = now
        used = os.statvfs(small_disk)
        for ballast in small_disk.glob("ballast*"):
            ballast.unlink()
        fill(small_disk, used.f_bavail * used.f_frsize + (32 << 10))
    assert found == wanted
    assert len(failed) > 5
    assert [said for said in failed if "No space left on device" not in said or str(root) not in said] == []


def test_a_read_only_disk_is_one_line(small_disk):
    from pipelines.cli.main import main

    (small_disk / "study.toml").write_text(dump_study(study()), "utf-8")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DAGSTER_HOME", raising=False)
        patch.setenv("HARDMOE_STUDY", "")
        done = CliRunner().invoke(main, ["run", "--study", str(small_disk / "study.toml")])
    assert done.exit_code == 1
    assert done.output == f"Error: [Errno 30] Read-only file system: '{small_disk}/dagster'\n"


# Many at once


def _commit(root, number, rounds):
    store = Store(root)
    for n in range(rounds):
        assert store.make(PLAN, lambda folder: _one_file(folder, "same")).metadata == {"text": "same"}
        mine = replace(PLAN, asset="expert", key=f"e{number:03d}", code=str(n))
        assert store.make(mine, lambda folder, n=n: _one_file(folder, f"{number} {n}")).metadata
        assert len(list((root / "expert" / f"e{number:03d}").iterdir())) == n + 1


def _one_file(folder, text):
    (folder / "a.txt").write_text(text)
    return StageOutput({"text": text})


@pytest.mark.parametrize("rounds", [13, pytest.param(100, marks=pytest.mark.soak)])
def test_eight_processes_commit_the_same_a_hundred_times_and_keys_of_their_own(tmp_path, rounds):
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_commit, args=(tmp_path, number, rounds)) for number in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    store = Store(tmp_path)
    (same,) = store.everything("trunk")
    assert same.file("a.txt").read_text() == "same"
    texts = sorted(artifact.file("a.txt").read_text() for artifact in store.everything("expert"))
    assert texts == sorted(f"{number} {n}" for number in range(8) for n in range(rounds))


# Flipped bytes


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_flipped_byte_in_any_file_of_any_artifact_is_refused(copied):
    kinds = set()
    for artifact in [a for name in GRAPH for a in copied.store.everything(name)]:
        for name in artifact.files:
            path = artifact.path / name
            kinds.add(path.suffix)
            flip(path, len(name) * 7919 % path.stat().st_size)
            with pytest.raises(ValueError, match="is not the file that was written"):
                artifact.file(name)
            flip(path, len(name) * 7919 % path.stat().st_size)
            artifact.file(name)
        manifest = artifact.path / "artifact.json"
        for at in range(5, manifest.stat().st_size, 97):
            flip(manifest, at)
            with pytest.raises(ValueError, match="is damaged"):
                copied.store.read(artifact.path)
            flip(manifest, at)
    assert {".json", ".parquet", ".safetensors", ".jsonl", ".lance", ".manifest", ".png", ".html"} <= kinds


def test_every_stage_checks_each_file_that_it_reads(copied, tmp_path, monkeypatch):
    """What a stage has not checked is torn to pieces, and it makes the same: it did not read it."""
    checked, real = set(), Artifact.file
    monkeypatch.setattr(Artifact, "file", lambda self, name: (checked.add(self.path / name), real(self, name))[1])
    for number, (stage, key) in enumerate(tasks(copied)):
        if stage.name == "published":  # it reads bundles alone, and judges anew once it has published
            continue
        checked.clear()
        context = Context(copied.study, copied.root)
        wanted = copied.need(stage.name, key).content_hash

        def digest_of_another(folder, stage=stage, key=key, context=context):
            plan = replace(context.plan(stage.name, key), asset="another")
            return Store(folder).make(plan, lambda inside: stage.make(context, key, inside)).content_hash

        assert digest_of_another(tmp_path / f"a{number}") == wanted
        mine = copied.need(stage.name, key).path
        torn = [
            artifact.path / name
            for other in GRAPH
            for artifact in copied.store.everything(other)
            for name in artifact.files
            if artifact.path / name not in checked and artifact.path != mine
            if other != "mixture"  # its files are checked by the bundle's own manifest: the next test
        ]
        kept = {path: path.read_bytes() for path in torn}
        for path in torn:
            path.write_bytes(b"torn")
        assert digest_of_another(tmp_path / f"b{number}") == wanted, (stage.name, key)
        for path, data in kept.items():
            path.write_bytes(data)


def test_a_flipped_byte_in_any_file_of_a_bundle_is_refused(copied):
    folder = copied.need("mixture").path
    bundle = Bundle(folder)
    for path in [p for p in files(folder) if p.name != "artifact.json"]:
        flip(path, path.stat().st_size * 2 // 3)
        with pytest.raises(ValueError, match=r"differs|was changed|not a|swapped|missing"):
            Bundle(folder)
        if path.parent.name == "experts":  # damaged after the bundle was opened
            with pytest.raises(ValueError, match="SHA-256 differs"), bundle.experts.using(path.stem):
                pass
        flip(path, path.stat().st_size * 2 // 3)


def test_a_flipped_byte_anywhere_in_a_checkpoint_is_never_loaded_as_another_state(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    model = build_network(Network(widths=(4,), depths=(1,), embedding=8), 3, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.zeros(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    save_checkpoint(path, model, optimizer, 3, 9)
    wanted, about = load_weights(path)
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    refused = 0
    for at in [*range(header), *range(header, path.stat().st_size, 101)]:
        flip(path, at)
        try:
            state, said = load_weights(path)
        except ValueError:
            refused += 1
        else:  # the name of the seal itself, or JSON that means the same
            assert at < header
            assert state.keys() == wanted.keys()
            assert all(torch.equal(state[name], wanted[name]) for name in state)
            assert about.items() <= said.items() or "steps" not in said
        flip(path, at)
    assert refused > 0.9 * header


def test_a_flipped_byte_in_posts_is_found_by_verify_which_says_what_to_do(copied):
    assert not [one for one in verify(copied) if isinstance(one, Damage)]
    found = sorted((copied.root / "posts.lance" / "data").iterdir())
    assert len(found) == 2
    flip(found[0], found[0].stat().st_size // 2)
    (damage,) = [one for one in verify(Context(copied.study, copied.root)) if isinstance(one, Damage)]
    shard = found[0].name.split(".")[0]
    assert damage.folder.parent == copied.root / "posts" / shard
    assert f"{found[0]} is not the file that was written" in damage.why
    assert f"delete {damage.folder} and run again" in damage.why
    digest = copied.need("posts", shard).content_hash
    shutil.rmtree(damage.folder)
    again = Context(copied.study, copied.root)
    assert build(again, GRAPH["posts"], shard).artifact.content_hash == digest
    assert not [one for one in verify(again) if isinstance(one, Damage)]


def test_verify_as_a_command(copied):
    from pipelines.cli.main import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARDMOE_STUDY", "")
        command = ["verify", "--study", str(copied.root / "study.toml")]
        assert CliRunner().invoke(main, command).output == "17 artifacts read, 0 damaged\n"
        flip(copied.need("expert", "e001").path / "weights.safetensors", 999)
        done = CliRunner().invoke(main, command)
    assert done.exit_code == 1
    assert "17 artifacts read, 1 damaged\n" in done.output
    assert "e001" in done.output


# Stages that fail


@pytest.mark.parametrize("experts", [1, 2, 7])
def test_after_a_failure_at_each_asset_in_turn_nothing_finished_is_made_again(tmp_path, experts):
    """Each stage fails once, when it has written all; what it had written is what it writes when it goes on."""
    small = study().model_copy(update={"partition": Partition(experts=experts, pca=8)})
    wanted = {}

    def fails(stage, key):
        def make(context, key, folder):
            written = stage.make(context, key, folder)
            plan = context.plan(stage.name, key)
            wanted[stage.name, key] = Store(tmp_path / "aside").make(plan, lambda there: _moved(folder, there, written))
            raise ValueError("the lights went out")

        return replace(stage, make=make)

    for number, (stage, key) in enumerate(tasks(Context(small, tmp_path))):
        context = Context(small, tmp_path)
        before = [build(context, *task).reused for task in tasks(context)[:number]]
        assert all(before)
        with pytest.raises(ValueError, match="the lights went out"):
            build(context, fails(stage, key), key)
        assert context.store.versions(stage.name, key) == []
        made = build(Context(small, tmp_path), stage, key)
        assert not made.reused
        assert made.artifact.content_hash == wanted[stage.name, key].content_hash, (stage.name, key)


def _moved(folder, there, written):
    shutil.copytree(folder, there, dirs_exist_ok=True)
    return written


# Clocks


def test_a_clock_that_steps_back_changes_nothing(copied, finished, monkeypatch):
    from pipelines.run.status import states_of

    changed = copied.study.model_copy(
        update={"evaluation": copied.study.evaluation.model_copy(update={"bootstrap": 30})}
    )
    for path in files(copied.root):
        os.utime(path, (4e9, 4e9))  # written in the year 2096, as far as the disk knows
    clock = itertools.count(2e9, -3600)
    monkeypatch.setattr(time, "time", lambda: next(clock))
    context = Context(changed, copied.root)
    _, made = make_all(context)
    assert made == [("evaluation", None), ("report", None)]
    assert {state.state for state in states_of(context)} == {"fresh"}
    whole, made = make_all(Context(copied.study, copied.root))
    assert made == []
    assert whole == make_all(Context(study(), finished))[0]
    assert Forgotten.load(copied.root) == context.forgotten
