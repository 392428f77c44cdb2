"""The node's cache: a file once, whole or not at all, within a bound, and none that is in use is taken away."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers.cached import Source, content, using
from moe_core import failpoints
from moe_core.errors import CacheFull, CorruptArtifact
from moe_core.store.cache import Cache, default_folder


@pytest.fixture
def source():
    return Source()


def held(cache):
    """How many files it has."""
    return len([path for path in (cache.root / "sha256").rglob("*") if path.is_file()])


def test_a_file_is_read_once_and_has_its_name(tmp_path, source):
    cache = Cache(tmp_path, 1000)
    path = source.get(cache, "expert/e003/weights.bin")
    assert path.read_bytes() == content("expert/e003/weights.bin")
    assert path.parts[-3:] == ("expert", "e003", "weights.bin")
    assert source.get(cache, "expert/e003/weights.bin") == path
    source.get(Cache(tmp_path, 1000), "expert/e003/weights.bin")
    assert (len(source.reads), held(cache), cache.size()) == (10, 1, 100)


def test_files_of_one_folder_lie_in_one(tmp_path, source):
    cache = Cache(tmp_path, 1000)
    assert source.get(cache, "v/data/a.lance").parents[1] == source.get(cache, "v/manifest").parent


def test_another_file_under_the_same_name_is_fetched(tmp_path, source):
    cache = Cache(tmp_path, 1000)
    assert source.get(cache, "x", 50).read_bytes() == content("x", 50)
    assert source.get(cache, "x", 60).read_bytes() == content("x", 60)


def test_what_a_build_used_is_given_up_at_once_and_may_go(tmp_path, source):
    cache = Cache(tmp_path, 300)
    paths = [source.get(cache, f"e00{n}/x") for n in range(3)]
    with pytest.raises(CacheFull):
        source.get(cache, "y")
    cache.release_all()
    assert not any(path.exists() for path in paths)
    assert source.get(cache, "y").read_bytes() == content("y")
    assert source.get(cache, "e002/x") == paths[2]


def test_an_empty_file_is_a_file(tmp_path, source):
    assert source.get(Cache(tmp_path, 1000), "x", 0).read_bytes() == b""


def test_the_least_recently_used_goes_and_what_is_in_use_stays(tmp_path, source):
    cache = Cache(tmp_path, 300)
    paths = {name: source.get(cache, name) for name in "abc"}
    for name in "bca":
        cache.release(paths[name])
    source.get(cache, "a")  # used last, and in use
    source.get(cache, "d")
    assert (held(cache), cache.size()) == (3, 300)
    source.reads.clear()
    source.get(Cache(tmp_path, 300), "c")
    assert source.reads == []
    source.get(Cache(tmp_path, 300), "b")
    assert set(source.reads) == {"b"}


def test_a_file_that_is_discarded_is_fetched_again(tmp_path, source):
    cache = Cache(tmp_path, 300)
    path = source.get(cache, "a")
    for name in ("a", "never fetched"):
        cache.discard(hashlib.sha256(content(name)).hexdigest())
    assert (path.read_bytes(), held(cache)) == (content("a"), 0), "a process that uses it keeps it"
    source.reads.clear()
    source.get(Cache(tmp_path, 300), "a")
    assert source.reads


def test_files_in_use_that_leave_no_room_are_an_error_until_one_is_released(tmp_path, source):
    cache = Cache(tmp_path, 250)
    first = source.get(cache, "a")
    source.get(cache, "b")
    with pytest.raises(CacheFull, match=r"may hold 2\.33e-07 GiB, .* 9\.31e-08 more are wanted: raise cache_gib"):
        source.get(cache, "c")
    assert (held(cache), cache.size()) == (2, 200)
    with open(first, "rb") as file:
        cache.release(first)
        source.get(cache, "c")
        assert file.read() == content("a"), "what is open stays open"


def test_a_full_disk_is_an_error_that_says_what_to_do_and_leaves_nothing(tmp_path, source, monkeypatch):
    cache = Cache(tmp_path, 1000)
    monkeypatch.setattr(failpoints, "armed", failpoints.parse("enospc cache.copy 5"))
    with pytest.raises(CacheFull, match=r"the disk of the cache .* is full, no room for a: free some, set cache_gib"):
        source.get(cache, "a")
    assert cache.size() == 0
    assert source.get(cache, "a").read_bytes() == content("a")


@pytest.mark.parametrize("damage", [b"", b"x" * 100])
def test_a_damaged_file_is_fetched_again(damage, tmp_path, source):
    cache = Cache(tmp_path, 1000)
    cache.release(source.get(cache, "a"))
    (entry,) = (path for path in (tmp_path / "sha256").rglob("*") if path.is_file())
    entry.chmod(0o644)
    entry.write_bytes(damage)
    assert source.get(cache, "a").read_bytes() == content("a")


def test_other_bytes_than_wanted_are_refused(tmp_path):
    cache = Cache(tmp_path, 1000)
    with pytest.raises(CorruptArtifact, match="wanted a file with SHA-256 00"):
        cache.fetch("a", "00" * 32, lambda start: (b"abc"[start:], 3))
    with pytest.raises(CorruptArtifact, match="of 5 bytes ended after 3"):
        cache.fetch("a", "00" * 32, lambda start: (b"abc"[start:], 5))
    assert cache.size() == 0


def test_many_at_once_read_a_file_once(tmp_path, source):
    processes = [using(tmp_path, 1000, "a", "b") for _ in range(4)]
    reads = [int(process.stdout.readline()) for process in processes]
    with ThreadPoolExecutor(8) as threads:
        paths = [*threads.map(lambda _: source.get(Cache(tmp_path, 1000), "c"), range(8))]
    assert (sum(reads), len(source.reads), len(paths)) == (20, 10, 8)
    for process in processes:
        process.communicate()
        assert process.returncode == 0


def test_what_a_process_uses_stays_until_it_is_killed(tmp_path, source):
    process = using(tmp_path, 100, "a")
    process.stdout.readline()
    cache = Cache(tmp_path, 100)
    with pytest.raises(CacheFull):
        source.get(cache, "b")
    process.kill()
    process.communicate()
    assert source.get(cache, "b").read_bytes() == content("b")
    assert len([*(tmp_path / "in-use").iterdir()]) == 1


def test_a_process_that_is_killed_while_it_fetches_leaves_room(tmp_path, source):
    process = using(tmp_path, 100, "a", fault="kill cache.copy 5")
    process.communicate()
    assert process.returncode == -9
    cache = Cache(tmp_path, 100)
    assert cache.size() == 100, "a part counts as the file that it is to be"
    assert source.get(cache, "b").read_bytes() == content("b")
    assert cache.size() == 100


def test_a_cache_lies_where_it_is_said_to(monkeypatch, tmp_path):
    monkeypatch.setenv("HARDMOE_CACHE", str(tmp_path / "fast"))
    assert default_folder() == tmp_path / "fast"
    monkeypatch.setenv("HARDMOE_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "hardmoe"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "hardmoe"
