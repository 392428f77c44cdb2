"""Blobs in a folder and in a bucket of a real server: whole or not there, one creator, errors that say what to do."""

import hashlib
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers import seaweed
from helpers.flaky import flaky
from moe_core.errors import BadSetting, CorruptArtifact, MissingLibrary, StorageFailed
from moe_core.store import bucket
from moe_core.store.blobs import Folder
from moe_core.store.places import claim, place_of, probe

ODD = "shard [a] %20#ä?'é+ &.tar/.hidden/x.json"


def sha(data):
    return hashlib.sha256(data).hexdigest()


def listed(place, folder=""):
    return [(entry.name, entry.size) for entry in place.names(folder)]


def test_what_was_written_is_read_listed_and_removed(place):
    assert (place.read("a/b.json"), listed(place), listed(place, "a")) == (None, [], [])
    place.write("a/b.json", b"one")
    (first,) = place.names()
    place.write("a/b.json", b"two")
    (second,) = place.names()
    assert first.tag != second.tag
    place.write(ODD, b"")
    place.write("ab", b"1234")
    assert (place.read("a/b.json"), place.read(ODD), place.read("a")) == (b"two", b"", None)
    assert listed(place) == sorted([("a/b.json", 3), (ODD, 0), ("ab", 4)])
    assert listed(place, "a") == [("a/b.json", 3)], "not ab"
    place.remove("a")
    place.remove("a")
    place.remove("ab")
    assert listed(place) == [(ODD, 0)]


def test_one_of_two_creates_and_one_that_repeats_itself_is_told_so(place):
    assert place.create("x/won", b"mine")
    assert place.create("x/won", b"mine"), "as after a lost answer"
    assert not place.create("x/won", b"other")
    assert place.read("x/won") == b"mine"


def test_a_file_of_any_size_is_uploaded_and_fetched(place, tmp_path, monkeypatch):
    monkeypatch.setattr(bucket, "PART", 5 << 20)  # the least that S3 takes
    for size in (0, 1, (5 << 20) - 1, 5 << 20, (11 << 20) + 7):
        data = b"ab" * (size // 2) + b"c" * (size % 2)
        (tmp_path / "file").write_bytes(data)
        place.upload(f"large/{size}.bin", tmp_path / "file")
        fetched = place.fetch(f"large/{size}.bin", sha(data))
        assert fetched.read_bytes() == data
        assert str(fetched).endswith(f"/large/{size}.bin")
        assert place.fetch(f"large/{size}.bin", sha(data)) == fetched
        place.release(fetched)
        assert place.fetch(f"large/{size}.bin", sha(data)).read_bytes() == data
    assert len(listed(place)) == 5


def test_a_damaged_or_missing_file_is_refused(place):
    place.write("x/weights", b"hellO")
    with pytest.raises(CorruptArtifact, match=r"x/weights.*(SHA-256|missing)"):
        place.fetch("x/weights", sha(b"hello"))
    with pytest.raises(CorruptArtifact, match=r"x/nothing.*missing"):
        place.fetch("x/nothing", sha(b"hello"))


def test_a_failing_upload_leaves_nothing(place, tmp_path):
    with pytest.raises(FileNotFoundError):
        place.upload("x/weights", tmp_path / "nothing")
    assert listed(place) == []


def test_a_good_place_passes_the_probe_and_is_left_clean(place):
    probe(place, rounds=2)
    assert listed(place) == []


def test_a_place_belongs_to_one_study(place):
    claim(place, "cats", rounds=1)
    claim(place, "cats", rounds=1)
    with pytest.raises(BadSetting, match=r"holds the study 'cats', .* this one is 'dogs': give it a prefix"):
        claim(place, "dogs", rounds=1)


# Places that do not keep their word


class AllWin(Folder):
    """As a server that takes no notice of If-None-Match."""

    def create(self, name, data):
        self.write(name, data)
        return True


class NoneWins(Folder):
    def create(self, name, data):
        super().create(name, data)
        return False


class LastCounts(Folder):
    """One is told that it won, and another one's data are there."""

    def __init__(self, root):
        super().__init__(root)
        self.first = threading.Lock()

    def create(self, name, data):
        won = self.first.acquire(blocking=False)
        self.write(name, b"writer 99")
        return won


@pytest.mark.parametrize(
    ("kind", "does"),
    [
        (AllWin, r"round 1: it told 8 of 8 writers of one object that theirs is there\)"),
        (NoneWins, "told 0 of 8 writers"),
        (LastCounts, r"told writer \d that its object is there, and has b'writer 99'"),
    ],
)
def test_a_place_that_does_not_keep_the_condition_is_refused(kind, does, tmp_path):
    with pytest.raises(BadSetting, match=f"does not keep `If-None-Match.*{does}"):
        probe(kind(tmp_path), rounds=1)


# Errors of a bucket


RIGHTS = "check the credentials in the environment and their rights to read, write, list and delete"
WRITES = {
    "create": lambda place: place.create("x", b"1"),
    "write": lambda place: place.write("x", b"1"),
    "remove": lambda place: place.remove("x"),
}
READS = {"read": lambda place: place.read("x"), "names": lambda place: [*place.names("x")]}


@pytest.mark.parametrize(
    ("more", "asks", "kind", "text"),
    [
        ({"key": "nobody"}, WRITES | READS, BadSetting, rf"refused a request for x \(InvalidAccessKeyId.*{RIGHTS}"),
        ({"secret": "no"}, WRITES | READS, BadSetting, rf"refused a request for x \(SignatureDoesNotMatch.*{RIGHTS}"),
        ({"key": seaweed.READER}, WRITES, BadSetting, rf"refused a request for x .*Access ?Denied.*{RIGHTS}"),
        ({"uri": "s3://no-one/cats"}, WRITES | READS, BadSetting, r"no bucket s3://no-one/cats at http.*: create it"),
        ({"uri": "s3://X/cats"}, WRITES | READS, BadSetting, "no bucket s3://X/cats"),
        ({"endpoint": "http://127.0.0.1:9"}, READS, StorageFailed, r"no right answer for 0.1 s .*check store.endpoint"),
    ],
    ids=["key", "secret", "rights", "bucket", "name", "endpoint"],
)
def test_an_error_of_a_bucket_is_one_line_that_says_what_to_do(more, asks, kind, text, server, tmp_path):
    place = server.place(tmp_path, patience=2 if "endpoint" not in more else 0.1, **more)
    for ask in asks.values():
        with pytest.raises(kind, match=text) as raised:
            ask(place)
        assert "\n" not in str(raised.value)


def test_no_credentials_are_told_before_anything_is_asked(monkeypatch):
    for name in bucket.CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    pytest.importorskip("obstore")
    with pytest.raises(BadSetting, match="s3://studies/cats wants credentials and there are none: set AWS_ACCESS_KEY"):
        place_of("s3://studies/cats", {"endpoint": "http://127.0.0.1:9"}).read("x")


def test_without_obstore_a_bucket_says_what_to_install_and_a_folder_works(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingLibrary, match=r"pip install 'hardmoe\[s3\]'"):
        place_of("s3://studies/cats", {"access_key_id": "x"}).read("x")
    place_of(str(tmp_path)).write("x", b"1")
    with pytest.raises(BadSetting, match=r"store\.uri is 'ftp://x': wanted a folder, or a bucket"):
        place_of("ftp://x")


@pytest.mark.parametrize("uri", ["/tmp", "s3://studies/cats"])
def test_obstore_is_loaded_by_the_first_request_to_a_bucket(uri):
    code = f"import sys, moe_core.store.places as p; p.place_of('{uri}'); print('obstore' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_forked_process_is_told_and_does_not_hang(server, tmp_path, monkeypatch):
    place = server.place(tmp_path)
    monkeypatch.setattr(bucket.os, "getpid", lambda: 1)
    with pytest.raises(AssertionError, match="obstore was used before this process was forked"):
        place.read("x")


def test_a_server_that_does_not_answer_is_not_waited_for_forever(tmp_path):
    pytest.importorskip("obstore")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        options = {"endpoint": f"http://127.0.0.1:{silent.getsockname()[1]}", "access_key_id": "x"}
        place = place_of("s3://studies/cats", {**options, "secret_access_key": "x"}).with_patience(0.5)
        before = time.monotonic()
        with pytest.raises(StorageFailed, match=r"no right answer for 0\.5 s"):
            place.write("x", b"1")
        assert time.monotonic() - before < 10


def test_refused_requests_and_lost_answers_lose_and_double_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setattr(bucket, "PART", 5 << 20)  # a large file is several requests
    data = b"z" * (11 << 20)
    (tmp_path / "file").write_bytes(data)
    with flaky(server.endpoint, seed=3) as proxy:
        place = server.place(tmp_path, endpoint=proxy.endpoint)
        with ThreadPoolExecutor(8) as threads:
            won = [*threads.map(lambda n: place.create(f"one/{n % 6}", b"%d" % n), range(24))]
        assert sum(won) == 6
        assert all(place.read(f"one/{n % 6}") == b"%d" % n for n in range(24) if won[n])
        for number in range(5):
            place.write("two", b"%d" % number)
            assert place.read("two") == b"%d" % number
        for number in range(2):
            place.upload(f"large/{number}", tmp_path / "file")
            fetched = place.fetch(f"large/{number}", sha(data))
            assert fetched.read_bytes() == data
            place.release(fetched)
            place.cache.root.joinpath("sha256", sha(data)[:2], sha(data)).unlink()
        names = [*(f"large/{n}" for n in range(2)), *(f"one/{n}" for n in range(6)), "two"]
        assert [name for name, _ in listed(place)] == names
        place.remove("one")
        place.remove("large")
        assert listed(place) == [("two", 1)]
    assert min(proxy.counts[what] for what in ("refused", "conflict", "cut")) > 0, proxy.counts
