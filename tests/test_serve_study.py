"""`hardmoe serve` on a study: another mixture takes over while requests come, search follows it and the takedowns."""

import re
import shutil
import subprocess
import sys
import threading

import pytest

from helpers import seaweed
from helpers.bundles import bundle_at, images, random_parts
from helpers.service import npy, png, serving, until
from moe_core.data.takedowns import Takedowns
from moe_core.service.following import Following
from moe_core.service.sources import published_of
from moe_core.serving import publication
from moe_core.serving.bundle import Bundle
from moe_core.serving.publication import Decision
from moe_core.serving.routed import predict
from moe_core.settings import Study
from moe_core.store.artifact import Spec, StageOutput
from moe_core.store.documents import FolderDocuments
from moe_core.store.protocols import open_store
from moe_core.study_file import dump_study

OLD, NEW = "a" * 20, "b" * 20
SENDERS = 6


@pytest.fixture
def root(tmp_path):
    """A study's folder with two mixtures of different experts and hashtags, the old one published."""
    root = tmp_path / "study"
    (root / "mixture").mkdir(parents=True)
    (root / "study.toml").write_text(dump_study(Study(name="served")), "utf-8")
    for version, count, tags in ((OLD, 4, "abcde"), (NEW, 2, "vwxyz")):
        (tmp_path / version).mkdir()
        parts = random_parts(tmp_path / version, 0, count=count)
        bundle_at(root / "mixture" / version, parts, precision="float32", tags=tags)
    publish(root, OLD)
    return root


def publish(root, version):
    decision = Decision("published", version, "", version, "for a test", "test")
    publication.change(FolderDocuments(root), lambda log: log.adding(decision))


def roll_back(root):
    publication.change(FolderDocuments(root), lambda log: log.rolled_back("test"))


def test_a_publication_and_a_rollback_under_load_lose_no_request(root):
    pixels = images(5, seed=11)
    body, headers = npy(pixels)
    experts = {version: predict(Bundle(root / "mixture" / version), pixels)[1] for version in (OLD, NEW)}
    tags = {OLD: set("abcde"), NEW: set("vwxyz")}
    found, ended = [], threading.Event()

    def send(server):
        while not ended.is_set():
            found.append(server.predict(body, headers))

    with serving("--study", root, "--poll", 0.05) as server:
        senders = [threading.Thread(target=send, args=(server,)) for _ in range(SENDERS)]
        for sender in senders:
            sender.start()
        for change, version in ((lambda: publish(root, NEW), NEW), (lambda: roll_back(root), OLD)):
            before = len(found)
            until(lambda before=before: len(found) > before + SENDERS)
            change()
            until(lambda version=version: server.version() == version)
            before = len(found)
            until(lambda before=before: len(found) > before + SENDERS)
        ended.set()
        for sender in senders:
            sender.join()
        assert server.metric('hardmoe_publications_total{how="opened"}') == 3
        assert server.metric(f'hardmoe_mixture{{version="{OLD}"}}') == 1
        assert server.metric(f'hardmoe_mixture{{version="{NEW}"}}') == 0
    assert {status for status, *_ in found} == {200}
    assert {document["mixture"] for _, document, _ in found} == {OLD, NEW}
    for _, document, _ in found:  # each is whole: by the experts, and with the hashtags, of one mixture
        assert [answer["expert"] for answer in document["images"]] == experts[document["mixture"]]
        named = {tag["tag"] for answer in document["images"] for tag in answer["tags"]}
        assert named == tags[document["mixture"]]


def test_a_published_mixture_that_does_not_open_leaves_the_old_one_answering(root):
    with serving("--study", root, "--poll", 0.05) as server:
        shutil.rmtree(root / "mixture" / NEW / "experts")
        publish(root, NEW)
        until(lambda: server.metric('hardmoe_publications_total{how="failed"}') > 0)
        assert server.predict(png())[1]["mixture"] == OLD
        assert f"mixture {OLD} still answers: " in server.log()
        publish(root, OLD)
        until(lambda: server.metric('hardmoe_publications_total{how="failed"}') > 0)
        assert server.version() == OLD


def test_a_mixture_can_be_pinned_by_the_beginning_of_its_version(root):
    with serving("--study", root, "--version", "bb", "--poll", 0.05) as server:
        assert server.predict(png())[1]["mixture"] == NEW
        status, document, _ = server.ask("GET", "/search?tag=v")
        assert (status, bool(document["error"])) == (404, True)  # this store has no posts


def test_the_published_mixture_of_a_study_in_a_bucket_is_followed(root, server, tmp_path, monkeypatch):
    for name, value in seaweed.environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    study, bucket_root = Study(name="served", store=server.settings()), tmp_path / "local"
    bucket_root.mkdir()
    (bucket_root / "study.toml").write_text(dump_study(study), "utf-8")
    store = open_store(study, bucket_root)

    def made(name):
        def write(folder):
            shutil.copytree(root / "mixture" / name, folder, dirs_exist_ok=True)
            return StageOutput({})

        return store.make(Spec("mixture", None, name, {}, {}), write).version

    def published(version):
        decision = Decision("published", version, "", version, "for a test", "test")
        publication.change(store.documents, lambda log: log.adding(decision))

    old, new = made(OLD), made(NEW)
    published(old)
    following = Following(published_of(bucket_root / "study.toml", None))
    assert (following.now.version, following.now.bundle.hashtags) == (old, list("abcde"))
    published(new)
    assert following.look()
    assert (following.now.version, following.now.bundle.hashtags) == (new, list("vwxyz"))
    publication.change(store.documents, lambda log: log.rolled_back("test"))
    assert following.look()
    assert following.now.version == old


def command(*arguments, **variables):
    line = [sys.executable, "-m", "pipelines.cli.main", "serve", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


def test_what_cannot_be_served_is_one_line(root, tmp_path):
    (tmp_path / "token").write_text("short")
    (tmp_path / "nothing").mkdir()
    with serving("--study", root) as server:
        for arguments, words in (
            (("--study", root, "--port", server.port), f"port {server.port} is in use; choose another with --port"),
            (("--study", root, "--host", "0.0.0.0"), "--host 0.0.0.0 is reached by others: give a token"),
            (("--study", root, "--token-file", tmp_path / "token"), "has 5 characters: wanted 16 and more of ASCII"),
            (("--bundle", tmp_path / "nothing", "--port", 0), "no bundle at "),
        ):
            done = command(*arguments)
            assert (done.returncode, done.stdout) == (1, "")
            assert re.fullmatch(r"Error: [^\n]*\n", done.stderr), done.stderr
            assert words in done.stderr


@pytest.mark.slow
def test_search_follows_the_published_mixture_and_the_takedowns(copied):
    """The study's own posts: by image, hashtag and post; what is taken down is in no further answer."""
    root = copied.root
    with serving("--study", root) as server:
        tags = server.ask("GET", "/tags")[1]["tags"]
        status, document, _ = server.ask("GET", f"/search?tag={tags[0]}&top=5")
        assert status == 200, document
        assert (len(document["hits"]), document["images"], document["mixture"]) == (5, [], server.version())
        first = document["hits"][0]
        assert sorted(document["hits"], key=lambda post: -post["score"]) == document["hits"]
        status, document, _ = server.ask("POST", "/search?top=3", png(), {"Content-Type": "image/png"})
        assert status == 200, document
        routed = server.predict(png())[1]["images"][0]
        assert document["images"] == [{key: routed[key] for key in ("image", "expert", "expert_published")}]
        status, document, _ = server.ask("GET", f"/search?post={first['id']}&split={first['split']}")
        assert status == 200, document
        assert first["id"] not in {post["id"] for post in document["hits"]}
        assert {post["split"] for post in document["hits"]} == {first["split"]}
        for query, wanted, words in (
            ("tag=nowhere-to-be-found", 404, "no hashtag"),
            ("post=nobody", 404, "no post"),
            ("", 422, "nothing to search for"),
            (f"tag={tags[0]}&since=yesterday", 422, "date 'yesterday'"),
            (f"tag={tags[0]}&expert=e999", 422, "no expert"),
        ):
            status, document, _ = server.ask("GET", f"/search?{query}")
            assert (status, words in document["error"]) == (wanted, True), document
        assert server.ask("POST", "/search", b"a cat")[0] == 422
        Takedowns.record(copied.store.documents, [first["id"]], [])
        found = server.ask("GET", f"/search?tag={tags[0]}&top=5")[1]["hits"]
        assert first["id"] not in {post["id"] for post in found}
