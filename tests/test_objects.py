"""Artifacts in a folder and in a bucket by put-if-absent: complete or invisible, the first commit wins."""

import json
import re
from pathlib import Path

import pytest

from helpers import builders
from helpers.builders import STEPS, is_right, said, spec, start, state_at, together
from helpers.flaky import flaky
from moe_core import failpoints
from moe_core.errors import CorruptArtifact, LockHeld, Overtaken
from moe_core.store import leases, objects
from moe_core.store.artifact import Spec, StageOutput
from moe_core.store.hashing import with_checksum
from moe_core.store.layout import Layout
from moe_core.store.objects import Objects

POINTS = {  # of a commit, and the step from which the next builder resumes; None where there is an artifact
    "lease.shared": 0,
    "lease.taken": 0,
    "artifact.begun": 0,
    "work.checked 3": 2,
    "work.saved 3": 3,
    "artifact.written": STEPS,
    "artifact.uploading 2": STEPS,
    "artifact.uploaded": STEPS,
    "artifact.manifest": STEPS,
    "artifact.committed": None,
}

pytestmark = pytest.mark.usefixtures("no_process_is_left")


def source(module):
    return Path(module.__file__).read_text("utf-8")


def files(place, key="e000"):
    """Names of all blobs of a key, without its lease."""
    names = [entry.name for entry in place.names(f"expert/{key}")]
    return [name for name in names if "/.lease-" not in name]


def test_what_was_built_is_found_listed_and_removed(place):
    store = Objects(place, builders.ROOT)
    assert (store.find(spec()), store.keys("expert"), store.everything("expert")) == (None, [], [])
    made = builders.build(place)
    assert is_right(made)
    assert store.find(spec()) == made
    assert (made.spec, made.metadata, made.key) == (spec(), {"steps": STEPS}, "e000")
    assert sorted(made.files) == ["inner/weights.bin", "note.txt"]
    trunk = store.make(Spec("trunk", None, "1", {}, {}), lambda folder: builders.filled(folder, b"x"))
    assert (store.keys("expert"), store.listed("expert")) == (["e000"], [("e000", made.version)])
    assert (store.keys("trunk"), store.listed("trunk")) == ([], [(None, trunk.version)])
    assert (store.versions("expert", "e000"), store.versions("expert", None)) == ([made], [])
    assert (store.everything("trunk"), store.exists("trunk", None, trunk.version)) == ([trunk], True)
    assert len(files(place)) == 3
    store.remove(made)
    store.remove(made)
    assert (store.find(spec()), store.listed("expert"), files(place)) == (None, [], [])
    assert store.find(trunk.spec) == trunk


def test_a_failing_writer_leaves_nothing(place):
    def fail(folder):
        (folder / "half").write_bytes(b"1")
        raise ValueError("not finite")

    with pytest.raises(ValueError, match="not finite"):
        Objects(place, builders.ROOT).make(spec(), fail)
    assert files(place) == []


def test_the_first_commit_wins_and_the_loser_leaves_nothing(place):
    store = Objects(place, builders.ROOT)
    first = []

    def write(folder):
        first.append(builders.build(place, with_lease=False))
        return builders.filled(folder, b"other")

    assert [store.make(spec(), write)] == first
    assert is_right(first[0])
    assert len(files(place)) == 3


def test_an_artifact_stays_until_it_is_replaced(place):
    store, old = Objects(place, builders.ROOT), builders.build(place)

    def write(folder):
        assert store.find(spec()) == old
        return builders.filled(folder, b"new")

    new = store.make(spec(), write, replace=True)
    assert (store.find(spec()), new.base != old.base, len(files(place))) == (new, True, 3)
    store.remove(old)
    assert store.find(spec()) == new


def test_an_artifact_with_a_damaged_manifest_is_replaced(place):
    store, old = Objects(place, builders.ROOT), builders.build(place)
    place.write(f"expert/e000/{old.version}/artifact.json", b"[")
    assert store.garbage("expert").lost == [], "nobody knows what it names"
    made = store.make(spec(), lambda folder: builders.filled(folder, b"new"), replace=True)
    assert store.find(spec()) == made
    assert store.garbage("expert").lost == [old.base]


@pytest.mark.parametrize("name", ["artifact.json", "inner/weights.bin"])
def test_a_flipped_byte_is_refused(name, place):
    made = builders.build(place)
    (blob,) = (entry.name for entry in place.names("expert") if entry.name.endswith(name))
    data = place.read(blob)
    place.write(blob, data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(CorruptArtifact, match=r"artifact.json is damaged|weights.bin"):
        Objects(place, builders.ROOT).find(spec()).file("inner/weights.bin")
    with pytest.raises(CorruptArtifact, match="has no file 'nothing': it holds"):
        made.file("nothing")
    with pytest.raises(CorruptArtifact, match="has no folder 'note/'"):
        made.folder("note")


def test_checkpoints_of_all_builders_count_and_a_damaged_one_does_not(place):
    store = Objects(place, builders.ROOT)
    for number in (1, 2):
        with store.building(spec(), pace=builders.QUICK), store.work(spec()) as work:
            assert builders.checkpoint(work)[0] == number - 1
            builders.save(work, number, b"%d" % number)
    folder = f"expert/e000/.work-{spec().version}"
    assert len([*place.names(folder)]) == 2, "the last one and what it names"
    place.write(f"{folder}/000009/000000001.json", b"damaged")
    place.write(f"{folder}/000009/000000000.json", json.dumps(with_checksum({"x": "0" * 64})).encode())
    with store.work(spec()) as work:
        assert builders.checkpoint(work) == (2, b"2")


def test_checkpoints_and_logs_travel_as_a_whole_and_once(place, tmp_path, monkeypatch):
    """As those of a joint training, which end under another name."""
    uploaded, upload = [], place.upload
    monkeypatch.setattr(place, "upload", lambda name, file: (uploaded.append(file.name), upload(name, file)))
    store = Objects(place, tmp_path)
    with store.work(spec()) as work:
        for name in ("e000.open.safetensors", "e001.safetensors", "e000.jsonl", "job.json", ".x.safetensors.1.part"):
            (work.folder / name).write_text(name)
        work.publish()
        work.close()
        assert uploaded == ["e000.jsonl", "e000.open.safetensors", "e001.safetensors"]
        work.publish()
        (work.folder / "e000.open.safetensors").rename(work.folder / "e000.safetensors")
        work.save()
        assert len(uploaded) == 3
    assert [*Layout(tmp_path).scratch.iterdir()] == []
    with store.work(spec()) as work:
        names = {path.name: path.read_text() for path in work.folder.iterdir()}
    assert names == {
        "e000.jsonl": "e000.jsonl",
        "e000.safetensors": "e000.open.safetensors",
        "e001.safetensors": "e001.safetensors",
    }


def test_a_builder_that_was_overtaken_is_told_at_its_next_checkpoint(bucket, tmp_path):
    store = Objects(bucket, tmp_path)
    with store.building(spec(), pace=builders.QUICK), store.work(spec()) as work:
        builders.save(work, 1, b"1")
        overtake(bucket)
        (work.folder / builders.CHECKPOINT).write_bytes(b"late")
        work.publish()
        work.close()
        with pytest.raises(Overtaken):
            work.publish()
        with pytest.raises(Overtaken):
            store.make(spec(), lambda folder: builders.filled(folder, b"late"))
    assert store.find(spec()) is None
    with store.work(spec()) as work:
        assert builders.checkpoint(work) == (1, b"1")


def overtake(place):
    """As if another builder had found this one dead."""
    (first,) = (entry.name for entry in place.names("expert") if entry.name.endswith("/000001"))
    assert place.create(first.replace("/000001", "/000002"), b"{}")


def test_eight_builders_at_once_give_one_result(place, tmp_path):
    """Without a lease, so that all eight upload and commit."""
    told = together([start(place, tmp_path / f"{n}", wait=True, with_lease=False) for n in range(8)])
    assert len({lines[-1] for lines in told}) == 1
    assert told[0][-1].startswith("made ")
    assert is_right(Objects(place, builders.ROOT).find(spec()))
    assert (len(files(place)), Objects(place, builders.ROOT).garbage("expert").lost) == (3, [])


def test_what_one_thread_fetched_stays_while_it_builds(bucket, tmp_path):
    store, made = Objects(bucket, tmp_path), builders.build(bucket)
    with store.building(spec("e001"), pace=builders.QUICK):
        fetched = made.file("note.txt")
        with store.building(spec("e002"), pace=builders.QUICK):
            pass
        assert fetched.exists()
    assert not fetched.exists()


def test_of_builders_at_once_one_computes_and_the_others_get_it(place, tmp_path):
    told = together([start(place, tmp_path / f"{n}", wait=True) for n in range(4)])
    assert len({lines[-1] for lines in told}) == 1
    assert [lines[0] for lines in told].count("start 0") == 1
    assert is_right(Objects(place, builders.ROOT).find(spec()))


def test_refused_requests_and_lost_answers_leave_one_result(server, bucket, tmp_path):
    with flaky(server.endpoint, seed=5) as proxy:
        more = {"wait": True, "endpoint": proxy.endpoint}
        free = [start(bucket, tmp_path / f"{n}", "e001", with_lease=False, **more) for n in range(3)]
        turns = [start(bucket, tmp_path / f"{n}", "e002", **more) for n in range(3)]
        told = together(free + turns)
    assert min(proxy.counts["refused"], proxy.counts["cut"]) > 5, proxy.counts
    for key, lines in (("e001", told[:3]), ("e002", told[3:])):
        made = Objects(bucket, builders.ROOT).find(spec(key))
        assert is_right(made)
        ends = {line[-1] for line in lines if not line[-1].startswith("Overtaken")}  # beats may be lost for long
        assert ends == {f"made {made.base} {made.content_hash}"}
    for name in Objects(bucket, builders.ROOT).garbage("expert").lost:
        bucket.remove(name)
    assert [len(files(bucket, key)) for key in ("e001", "e002")] == [3, 3]


def test_every_point_of_a_build_is_one_where_it_is_killed():
    named = {name for module in (objects, leases) for name in re.findall(r'failpoint\("([^"]+)"', source(module))}
    assert named - {point.split()[0] for point in POINTS} == {"artifact.removed"}, "that one is the next test's"


def test_an_artifact_whose_removal_was_interrupted_is_not_there(place, monkeypatch):
    store, made = Objects(place, builders.ROOT), builders.build(place)
    monkeypatch.setattr(failpoints, "armed", failpoints.parse("eio artifact.removed"))
    with pytest.raises(OSError, match="Input/output error"):
        store.remove(made)
    assert (store.find(spec()), store.garbage("expert").unfinished) == (None, [made.base])
    assert is_right(builders.build(place))
    assert store.garbage("expert").lost == [made.base]


def finish(place, key, point, folder):
    started = []
    assert (Objects(place, builders.ROOT).find(spec(key)) is None) == (POINTS[point] is not None), point
    made = builders.build(place, key, folder / "cache" / "root", told=lambda word, step: started.append((word, step)))
    assert is_right(made), point
    assert started[:1] == ([] if POINTS[point] is None else [("start", POINTS[point])]), point


def test_killed_at_any_point_another_finishes(place, tmp_path):
    processes = {}
    for number, point in enumerate(POINTS):
        words = point.split()
        fault = f"kill {words[0]} {' '.join(words[1:] or ['1'])}"
        processes[point] = start(place, tmp_path / "cache", f"e{number:03d}", fault=fault)
    for point, process in processes.items():
        process.communicate(timeout=60)
        assert process.returncode == -9, point
    for number, point in enumerate(POINTS):
        finish(place, f"e{number:03d}", point, tmp_path)
    assert [*Layout(tmp_path / "cache" / "root").scratch.iterdir()] == []
    garbage = Objects(place, builders.ROOT).garbage("expert")
    assert garbage.unfinished == []
    for name in garbage.lost:
        place.remove(name)
    assert all(len(files(place, f"e{number:03d}")) == 3 for number in range(len(POINTS)))


def test_a_builder_that_was_stopped_and_overtaken_changes_nothing(bucket, tmp_path):
    process = start(bucket, tmp_path / "cache", pause=0.3)
    lines = iter(process.stdout.readline, "")
    assert next(line for line in lines if line == "step 2\n")
    process.send_signal(builders.STOP)
    started = []
    made = builders.build(bucket, told=lambda word, step: started.append((word, step)))
    assert started[0][0] == "start"
    assert started[0][1] >= 2, "from the other's checkpoint"
    process.send_signal(builders.CONTINUE)
    assert said(process)[-1].startswith("Overtaken")
    assert Objects(bucket, builders.ROOT).find(spec()) == made
    assert is_right(made)


def test_garbage_is_what_nobody_builds_and_no_artifact_names(place, tmp_path):
    store, made = Objects(place, builders.ROOT), builders.build(place)
    folder = f"expert/e000/{made.version}"
    place.write(f"{folder}/at-lost/weights.bin", b"1")
    place.write(f"expert/e000/.work-{made.version}/000001/000000000001-00", b"1")
    place.write("expert/e001/v2/at-dead/weights.bin", b"1")
    assert store.keys("expert") == ["e000", "e001"]
    lost = [f"{folder}/at-lost", f"expert/e000/.work-{made.version}"]
    garbage = store.garbage("expert")
    assert (garbage.lost, garbage.unfinished) == (lost, ["expert/e001/v2/at-dead"])
    with store.building(spec(), pace=builders.QUICK):
        assert store.builder(spec()) is not None
        with pytest.raises(LockHeld), store.deleting(wait=False, pace=builders.QUICK):
            pass
    with store.deleting(wait=False, pace=builders.QUICK):
        for name in lost:
            place.remove(name)
    assert is_right(store.find(spec()))


def test_content_may_leave_out_logs(place):
    output = StageOutput({}, {"weights": "aa"})
    one = Objects(place, builders.ROOT).make(Spec("a", None, "1", {}, {}), lambda folder: output)
    assert (
        one.content_hash
        == Objects(place, builders.ROOT).make(Spec("b", None, "1", {}, {}), lambda folder: output).content_hash
    )
    assert state_at(0) == b"start"
