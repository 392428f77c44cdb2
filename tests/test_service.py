"""Parts of the service alone: what waits, what is counted, what is too late, and which mixture answers."""

import asyncio
import json
import weakref
from concurrent.futures import Future

import numpy as np
import pytest

from helpers.bundles import EXPERTS, SIDE, bundle_at, flip, images, random_parts
from helpers.service import npy
from moe_core.errors import CorruptArtifact, StorageFailed
from moe_core.service.answers import predictions
from moe_core.service.app import create_app
from moe_core.service.batching import Answers, Batcher, Job
from moe_core.service.following import Following, Source, fixed
from moe_core.service.guard import Token, is_loopback
from moe_core.service.limits import Limits, Room, TooMuch
from moe_core.service.mixture import Mixture
from moe_core.service.service import Answered, Service
from moe_core.serving.bundle import Bundle
from moe_core.serving.routed import predict, routed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("service")
    return bundle_at(root / "bundle", random_parts(root, 0), precision="float32")


@pytest.fixture(scope="module")
def mixture(folder):
    return Mixture("1", Bundle(folder))


def job_of(mixture, images_NHWC, top=2, embed=False):
    """(job, a future of its answers)."""
    answers = Future()

    def done(found):
        if isinstance(found, Exception):
            answers.set_exception(found)
        else:
            answers.set_result(found)

    return Job(mixture, images_NHWC, top, embed, done), answers


def test_jobs_that_wait_are_one_batch_and_each_gets_its_own_answers(mixture):
    batches = []
    batcher = Batcher(0.0, 0.0, observe=lambda images, seconds: batches.append(images))
    cases = ((3, 2, False), (1, 0, True), (5, 4, True))
    jobs = [job_of(mixture, images(count, seed=count), top, embed) for count, top, embed in cases]
    for job, _ in jobs:
        batcher.submit(job)
    batcher.start()
    found = [answers.result(60) for _, answers in jobs]
    batcher.close()
    assert batches == [9]
    for answers, (count, top, embed) in zip(found, cases, strict=True):
        p_NV, experts = predict(mixture.bundle, images(count, seed=count))
        assert answers.experts == experts
        assert [len(row) for row in answers.hashtags_NK] == [top] * count
        if top:
            assert [row[0] for row in answers.p_NK] == pytest.approx(p_NV.amax(1).tolist(), abs=1e-5)
        assert (answers.embeddings_ND is not None) == embed


def test_images_of_two_mixtures_are_answered_by_their_own(mixture, tmp_path):
    other = Mixture("2", Bundle(bundle_at(tmp_path / "other", random_parts(tmp_path, 0, count=2), precision="float32")))
    batcher = Batcher(0.0, 0.0)
    jobs = [job_of(one, images(6, seed=3)) for one in (mixture, other, mixture)]
    for job, _ in jobs:
        batcher.submit(job)
    batcher.start()
    found = [answers.result(60).experts for _, answers in jobs]
    batcher.close()
    assert found == [predict(one.bundle, images(6, seed=3))[1] for one in (mixture, other, mixture)]


def test_an_expert_that_cannot_be_read_fails_its_own_requests_alone(tmp_path):
    folder = bundle_at(tmp_path / "bundle", random_parts(tmp_path, 0), precision="float32")
    mixture = Mixture("1", Bundle(folder))
    pixels = images(48, seed=7)
    experts = predict(mixture.bundle, pixels)[1]
    damaged = Mixture("1", Bundle(folder))
    flip(folder / "experts" / "e001.safetensors", -1)
    batcher = Batcher(0.0, 0.0)
    jobs = [job_of(damaged, pixels[row : row + 1]) for row in range(len(pixels))]
    for job, _ in jobs:
        batcher.submit(job)
    batcher.start()
    for (_, answers), expert in zip(jobs, experts, strict=True):
        if expert == "e001":
            assert isinstance(answers.exception(60), CorruptArtifact)
        else:
            assert answers.result(60).experts == [expert]
    batcher.close()
    assert {"e001"} < set(experts)


def test_what_nobody_waits_for_is_not_computed(mixture):
    batches = []
    batcher = Batcher(0.0, 0.0, observe=lambda images, seconds: batches.append(images))
    (left, left_answers), (kept, kept_answers) = (job_of(mixture, images(count)) for count in (4, 1))
    for job in (left, kept):
        batcher.submit(job)
    left.dropped = True
    batcher.start()
    assert len(kept_answers.result(60).experts) == 1
    batcher.close()
    assert (batches, left_answers.done()) == ([1], False)


def test_a_batch_waits_for_what_is_being_decoded_and_not_for_ever(mixture):
    batches = []
    batcher = Batcher(0.0, 60.0, observe=lambda images, seconds: batches.append(images))
    batcher.coming(1)
    batcher.start()
    (first, first_answers), (second, second_answers) = (job_of(mixture, images(1)) for _ in range(2))
    batcher.submit(first)
    batcher.submit(second)
    assert not first_answers.done()
    batcher.coming(-1)
    assert first_answers.result(60)
    assert second_answers.result(60)
    batcher.close()
    impatient = Batcher(0.0, 0.01)
    impatient.coming(1)
    impatient.start()
    job, answers = job_of(mixture, images(1))
    impatient.submit(job)
    assert answers.result(60)
    impatient.close()
    assert batches == [2]


def test_room_is_bounded_and_says_when_to_come_again():
    room = Room(10, "images")
    room.take(10)
    with pytest.raises(TooMuch, match="busy: 10 images are waiting, at most 10 may") as error:
        room.take(1, seconds_each=0.35)
    assert error.value.retry_after == 4
    room.give(4)
    room.take(4)
    with pytest.raises(TooMuch) as error:
        room.take(1, seconds_each=1e6)
    assert error.value.retry_after == 60
    assert Limits().queued(32) == 16_384
    assert Limits().queued(1024) == 256
    assert Limits(queue=7).queued(32) == 7


def ask(app, path, events, headers=()):
    """(status, document) of a POST whose body comes as these ASGI events, and then nothing more."""
    sent, waiting = [], list(events)

    async def receive():
        if not waiting:
            await asyncio.sleep(600)
        return waiting.pop(0)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1:8000"), *headers],
        "state": {},
        "app": app,
    }
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 60))
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


@pytest.mark.parametrize(
    ("events", "status", "words"),
    [
        ([], 408, "the body did not come in 0.1 s"),
        ([{"type": "http.request", "body": b"x", "more_body": True}], 408, "the body did not come in 0.1 s"),
        ([{"type": "http.disconnect"}], 400, "the body ends early"),
    ],
)
def test_a_body_that_does_not_come_is_given_up(folder, events, status, words):
    service = Service(fixed("1", Bundle(folder)), Limits(seconds=0.1))
    assert ask(create_app(service), "/predict", events) == (status, {"error": words})
    assert (service.bodies.held, service.queue.held) == (0, 0)


def test_an_answer_that_takes_too_long_is_given_up(folder):
    """Nothing computes here: the service does not run."""
    service = Service(fixed("1", Bundle(folder)), Limits(seconds=0.2))
    body, headers = npy(images(3))
    events = [{"type": "http.request", "body": body, "more_body": False}]
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    status, document = ask(create_app(service), "/predict", events, encoded)
    assert (status, document["error"]) == (504, "no answer in 0.2 s (--time-limit): send fewer images")
    assert (service.bodies.held, service.queue.held) == (0, 0)


def test_bodies_of_all_requests_are_bounded_together(folder):
    service = Service(fixed("1", Bundle(folder)), Limits(body_bytes=6000, bodies_bytes=10_000))
    service.bodies.take(5000)
    status, document = ask(create_app(service), "/predict", [], [(b"content-length", b"5001")])
    assert (status, document["error"]) == (429, "busy: 5,000 bytes of bodies are waiting, at most 10,000 may")


class Publications:
    """A source whose published version the test sets."""

    def __init__(self, bundles):
        self.bundles, self.version, self.failure, self.opened = bundles, "1", None, []

    def source(self):
        return Source(lambda: self.version, self.published, self.open)

    def published(self):
        if self.failure:
            raise self.failure
        return self.version

    def open(self, version):
        self.opened.append(version)
        return self.bundles[version]()


def test_a_newly_published_mixture_takes_over_and_one_that_does_not_open_never_does(folder, tmp_path):
    def missing():
        raise CorruptArtifact("damaged")

    there = Publications({"1": lambda: Bundle(folder), "2": lambda: Bundle(folder), "3": missing})
    told = []
    following = Following(there.source(), changed=told.append)
    assert following.now.version == "1"
    assert following.look()
    assert there.opened == ["1"]
    there.version = "2"
    assert following.look()
    assert following.now.version == "2"
    there.version = "3"
    assert not following.look()
    assert not following.look()
    assert following.now.version == "2"
    there.version, there.failure = "1", StorageFailed("the bucket does not answer")
    assert not following.look()
    there.failure = None
    assert following.look()
    assert following.now.version == "1"
    assert [mixture and mixture.version for mixture in told] == ["2", None, None, None, "1"]


def test_an_old_mixture_leaves_memory_with_its_last_request(folder):
    there = Publications({"1": lambda: Bundle(folder), "2": lambda: Bundle(folder)})
    following = Following(there.source())
    batcher = Batcher(0.0, 0.0)
    batcher.start()
    job, answers = job_of(following.now, images(4))
    gone = weakref.ref(following.now.bundle)
    batcher.submit(job)
    assert answers.result(60)
    there.version = "2"
    assert following.look()
    del job
    batcher.close()
    assert gone() is None


def test_embeddings_come_with_the_answers_of_the_stream(mixture):
    batches = [images(count, seed=count) for count in (5, 0, 9)]
    plain = list(routed(mixture.bundle, batches))
    for one, other in zip(routed(mixture.bundle, batches, embed=True), plain, strict=True):
        assert one.experts == other.experts
        assert np.allclose(one.probabilities_BV, other.probabilities_BV, atol=1e-6)
        assert one.embeddings_BD.shape == (len(one.experts), mixture.bundle.router.width)
    assert plain[0].embeddings_BD is None
    assert mixture.bundle.image_size == SIDE
    assert len(mixture.bundle.published) == EXPERTS


def test_hashtags_below_their_threshold_for_a_precision_are_left_out(mixture):
    answers = Answers(["e000"], [[3, 0, 2]], [[0.5, 0.3, 0.125]], None)
    answered = Answered(mixture, [None], [""], answers)
    limit_V = np.array([0.4, 1, 0.125, 0.2, 1], np.float32)
    (found,) = predictions(answered, 0.0, limit_V)["images"]
    assert [tag["tag"] for tag in found["tags"]] == ["d", "c"]
    (found,) = predictions(answered, 0.2, limit_V)["images"]
    assert [tag["tag"] for tag in found["tags"]] == ["d"]
    assert mixture.limits_of(0.9) is None


def test_loopback_is_told_from_what_others_reach():
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "", "localhost.evil"))


def test_a_token_is_compared_whole():
    def scope(*values):
        return {"headers": [(b"authorization", value) for value in values]}

    token = Token("secret-secret-secret")
    assert token.refusal(scope(b"Bearer secret-secret-secret")) is None
    for values in ((), (b"Bearer secret-secret-secre",), (b"Bearer \xff",), (b"Bearer secret-secret-secret",) * 2):
        assert token.refusal(scope(*values))[0] == 401
