"""The sensor of new shards: each is asked for once, large files are read once beside its ticks."""

import shutil
import threading

import pyarrow.parquet as pq
import pytest

from helpers.formats import WRITERS, random_posts, table_of
from moe_core.data.sources.files import file_of
from moe_core.data.sources.scan import ContentHashes
from moe_core.errors import BadSource


@pytest.fixture(scope="module")
def posts():
    return random_posts()


# The sensor


def test_the_sensor_asks_for_each_new_or_changed_shard_once(posts, tmp_path, monkeypatch):
    import dagster as dg

    from moe_core.engine.build import build
    from moe_core.recipes import small
    from moe_core.workspace import open_study
    from pipelines import sensors

    (tmp_path / "in").mkdir()
    source = WRITERS["parquet"](posts, tmp_path / "in").model_copy(update={"uri": str(tmp_path / "in")})
    study = small().model_copy(update={"source": source})
    monkeypatch.setattr(sensors, "study", lambda: study)
    monkeypatch.setattr(sensors, "root", lambda: tmp_path)
    assert sensors.new_shards.default_status == dg.DefaultSensorStatus.STOPPED
    with dg.instance_for_test() as instance:

        def look():
            return sensors.new_shards(dg.build_sensor_context(instance=instance))

        def keys():
            return set(instance.get_dynamic_partitions(f"{study.name}_shards"))

        first = look()
        version = open_study(study, tmp_path).version("posts", "posts")
        (asked,) = first.run_requests
        assert (asked.partition_key, asked.run_key) == ("posts", f"posts-{version}")
        assert keys() == {"posts"}
        assert look().run_requests[0].run_key == asked.run_key  # the daemon starts one run a run key
        context = open_study(study, tmp_path)
        build(context, "posts", "posts")
        done = look()
        assert not done.run_requests
        assert done.skip_reason.skip_message == "all 1 shards are ingested"
        pq.write_table(table_of(posts[:9]), tmp_path / "in" / "posts.parquet")
        pq.write_table(table_of(posts[9:20]), tmp_path / "in" / "a.parquet")
        again = look()
        assert [request.partition_key for request in again.run_requests] == ["a", "posts"]
        assert again.run_requests[1].run_key != asked.run_key
        assert keys() == {"a", "posts"}
        (tmp_path / "in" / "half.parquet").write_bytes(b"PAR1")
        assert [request.partition_key for request in look().run_requests] == ["a", "posts"]
        for key in ("a", "posts"):
            build(open_study(study, tmp_path), "posts", key)
        assert "half.parquet is not a readable Parquet file" in look().skip_reason.skip_message


def test_a_file_that_takes_longer_than_a_tick_is_read_once_beside_the_ticks(tmp_path, posts, monkeypatch):
    """The file's bytes stop coming until the test lets them: a slow disk, at any size."""
    import dagster as dg

    from moe_core.data.sources import scan
    from moe_core.recipes import small
    from moe_core.store.hashing import file_hash
    from pipelines import sensors

    (tmp_path / "in").mkdir()
    source = WRITERS["parquet"](posts, tmp_path / "in").model_copy(update={"uri": str(tmp_path / "in")})
    study = small().model_copy(update={"source": source})
    read, go_on = [], threading.Event()

    def slow(path):
        read.append(path.name)
        assert go_on.wait(120)
        return file_hash(path)

    monkeypatch.setattr(scan, "file_hash", slow)
    monkeypatch.setattr(scan, "LARGE", 1)
    monkeypatch.setattr(sensors, "study", lambda: study)
    monkeypatch.setattr(sensors, "root", lambda: tmp_path)
    monkeypatch.setattr(sensors, "READ_SECONDS", 0.2)
    with dg.instance_for_test() as instance:

        def look():
            return sensors.new_shards(dg.build_sensor_context(instance=instance))

        for _ in range(3):
            said = look()
            assert not said.run_requests
            assert said.skip_reason.skip_message.startswith("new or changed files are being read since ")
        assert read == ["posts.parquet"], "the ticks did not read beside each other"
        monkeypatch.setattr(sensors, "READ_SECONDS", 120.0)
        go_on.set()
        (asked,) = look().run_requests
        assert asked.partition_key == "posts"
        assert read == ["posts.parquet"], "a later tick knew it"
        pq.write_table(table_of(posts[:9]), tmp_path / "in" / "posts.parquet")
        (again,) = look().run_requests
        assert again.run_key != asked.run_key
        assert read == ["posts.parquet"] * 2
        shutil.rmtree(tmp_path / "in")
        with pytest.raises(BadSource, match="Parquet"):  # the thread's error is the tick's
            look()
        assert not sensors.scans


def test_a_look_that_ended_between_two_ticks_is_not_the_answer(tmp_path, posts, monkeypatch):
    import dagster as dg

    from moe_core.data.sources import scan
    from moe_core.recipes import small
    from moe_core.store.hashing import file_hash
    from pipelines import sensors

    (tmp_path / "in").mkdir()
    source = WRITERS["parquet"](posts, tmp_path / "in").model_copy(update={"uri": str(tmp_path / "in")})
    study = small().model_copy(update={"source": source})
    go_on = threading.Event()
    monkeypatch.setattr(scan, "file_hash", lambda path: go_on.wait(120) and file_hash(path))
    monkeypatch.setattr(sensors, "study", lambda: study)
    monkeypatch.setattr(sensors, "root", lambda: tmp_path)
    monkeypatch.setattr(sensors, "READ_SECONDS", 0.2)
    with dg.instance_for_test() as instance:
        assert not sensors.new_shards(dg.build_sensor_context(instance=instance)).run_requests
        go_on.set()
        sensors.scans[tmp_path].join(120)
        pq.write_table(table_of(posts[:9]), tmp_path / "in" / "more.parquet")
        monkeypatch.setattr(sensors, "READ_SECONDS", 120.0)
        found = sensors.new_shards(dg.build_sensor_context(instance=instance)).run_requests
        assert [request.partition_key for request in found] == ["more", "posts"]


def test_what_was_read_before_a_look_was_cut_short_is_not_read_again(tmp_path, monkeypatch):
    from moe_core.data.sources import scan
    from moe_core.store.hashing import file_hash

    for name in "abcde":
        (tmp_path / name).write_bytes(name.encode() * 40)
    read = []

    def until_the_fourth(path):
        read.append(path.name)
        if len(read) == 4:
            raise MemoryError
        return file_hash(path)

    monkeypatch.setattr(scan, "file_hash", until_the_fourth)
    monkeypatch.setattr(scan, "LARGE", 80)
    all_of_them = [file_of(tmp_path / name, tmp_path) for name in "abcde"]
    first = ContentHashes(tmp_path / "hashes.json", autosave=True)
    with pytest.raises(MemoryError):
        list(map(first.of, all_of_them))
    again = ContentHashes(tmp_path / "hashes.json", autosave=True)
    scan.hash_of_content.cache_clear()  # another process
    assert [again.of(file) for file in all_of_them] == [file_hash(tmp_path / name) for name in "abcde"]
    assert "".join(read) == "abcd" + "cde"


def test_two_who_look_at_a_large_file_at_once_read_it_once(tmp_path, monkeypatch):
    from moe_core.data.sources import scan
    from moe_core.store.hashing import file_hash

    (tmp_path / "large").write_bytes(b"x" * 100)
    read, both = [], threading.Barrier(2)

    def slow(path):
        read.append(path)
        return file_hash(path)

    monkeypatch.setattr(scan, "file_hash", slow)
    monkeypatch.setattr(scan, "LARGE", 100)
    scan.hash_of_content.cache_clear()  # as in two processes
    monkeypatch.setattr(scan, "hash_of_content", scan.hash_of_content.__wrapped__)
    found = []

    def look():
        hashes = ContentHashes(tmp_path / "hashes.json", autosave=True)
        both.wait()  # neither knows it
        found.append(hashes.of(file_of(tmp_path / "large", tmp_path)))

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [file_hash(tmp_path / "large")] * 2
    assert len(read) == 1
