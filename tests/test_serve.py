"""`hardmoe serve` on loopback: its answers are those of the bundle, and what it refuses has a reason."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from helpers.bundles import EXPERTS, SIDE, TAGS, bundle_at, images, random_parts
from helpers.service import form, npy, png, serving, until
from moe_core.evaluation.metrics import best_hashtags
from moe_core.serving.bundle import Bundle
from moe_core.serving.routed import predict
from moe_core.training.posts import ImagesInMemory

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Four experts, of which e003 is not published, and a router that answers with them."""
    root = tmp_path_factory.mktemp("serve")
    parts = random_parts(root, 0)
    return bundle_at(root / "bundle", parts, answer="mixture_top1_router", precision="float32")


@pytest.fixture(scope="module")
def server(bundle):
    with serving("--bundle", bundle, "--memory", 1) as one:
        yield one


@pytest.fixture(scope="module")
def narrow(bundle):
    """One that takes little."""
    with serving("--bundle", bundle, "--body", 1, "--images", 16, "--queue", 16) as one:
        yield one


@pytest.fixture(scope="module")
def wanted(bundle):
    """(pixels, experts, probabilities, embeddings) of images that reach every expert."""
    opened, pixels_NHWC = Bundle(bundle), images(48, seed=7)
    probabilities_NV, experts = predict(opened, pixels_NHWC)
    assert set(experts) == set(opened.published)
    numbers = np.array([list(opened.published).index(key) for key in experts])
    return pixels_NHWC, experts, probabilities_NV, opened.features_by_expert(numbers, ImagesInMemory(pixels_NHWC))


def check(bundle, answers, wanted, rows):
    """Answers are those of the bundle to images `rows`, with all hashtags."""
    _, experts, p_NV, _ = wanted
    tags = Bundle(bundle).hashtags
    assert [answer["expert"] for answer in answers] == [experts[row] for row in rows]
    for row, answer in zip(rows, answers, strict=True):
        order = best_hashtags(p_NV[row : row + 1], TAGS)[0].tolist()
        assert answer["expert_published"] == (answer["expert"] != "e003")
        assert [tag["tag"] for tag in answer["tags"]] == [tags[number] for number in order]
        assert [tag["p"] for tag in answer["tags"]] == pytest.approx(p_NV[row, order].tolist(), abs=2e-5)


def test_an_image_as_the_body_gets_the_bundle_s_answer_whatever_its_type(server, bundle, wanted):
    body = png(wanted[0][0])
    for headers in ({}, {"Content-Type": "image/png"}, {"Content-Type": "application/x-www-form-urlencoded"}):
        status, document, _ = server.predict(body, headers)
        assert status == 200
        assert document["mixture"] == "bundle"
        assert document["images"][0]["image"] is None
        assert document["images"][0]["answer"] == "mixture_top1_router"
        check(bundle, document["images"], wanted, [0])


def test_files_of_a_form_and_arrays_get_the_same_answers_in_order(server, bundle, wanted):
    pixels = wanted[0]
    names = [f"bild é {number}.png" for number in range(len(pixels))]
    status, document, _ = server.predict(*form(zip(names, map(png, pixels), strict=True)))
    assert status == 200
    assert [answer["image"] for answer in document["images"]] == names
    check(bundle, document["images"], wanted, range(len(pixels)))
    status, document, _ = server.predict(*npy(pixels))
    assert status == 200
    check(bundle, document["images"], wanted, range(len(pixels)))


def test_hashtags_are_as_many_and_as_probable_as_asked_for(server, wanted):
    body = png(wanted[0][0])
    tags = server.predict(body)[1]["images"][0]["tags"]
    assert server.predict(body, query="?top=2")[1]["images"][0]["tags"] == tags[:2]
    least = tags[1]["p"]
    found = server.predict(body, query=f"?min_p={least - 1e-4}")[1]["images"][0]["tags"]
    assert found == [tag for tag in tags if tag["p"] >= least]
    assert server.predict(body, query="?min_p=1")[1]["images"][0]["tags"] == []
    status, document, _ = server.predict(body, query="?precision=0.9")
    assert (status, "has no thresholds" in document["error"]) == (422, True)


def test_an_embedding_is_that_of_the_image_s_own_expert_published_or_not(server, wanted):
    pixels, experts, _, embedding_ND = wanted
    status, document, _ = server.ask("POST", "/embed", *npy(pixels))
    assert status == 200
    assert document["width"] == embedding_ND.shape[1]
    assert [answer["expert"] for answer in document["images"]] == experts
    found_ND = torch.tensor([answer["embedding"] for answer in document["images"]])
    assert torch.allclose(found_ND, embedding_ND, atol=1e-5)
    body, headers = form([("a.png", png(pixels[0])), ("b.png", png(pixels[1]))])
    status, content, found = server.ask("POST", "/embed", body, headers | {"Accept": "application/x-npy"})
    assert (status, found["Content-Type"], found["X-Mixture"]) == (200, "application/x-npy", "bundle")
    array = np.frombuffer(content[-2 * 4 * embedding_ND.shape[1] :], np.float32).reshape(2, -1)
    assert np.allclose(array, embedding_ND[:2], atol=1e-5)


def test_the_vocabulary_can_be_searched_and_paged(server):
    assert server.ask("GET", "/tags")[1] == {"mixture": "bundle", "count": 5, "tags": ["a", "b", "c", "d", "é"]}
    assert server.ask("GET", "/tags?match=B")[1]["tags"] == ["b"]
    assert server.ask("GET", "/tags?first=1&top=2")[1] == {"mixture": "bundle", "count": 5, "tags": ["b", "c"]}


def test_many_at_once_get_their_own_answers_in_batches(server, bundle, wanted):
    pixels, before = wanted[0], server.metric("hardmoe_batch_images_count")
    files = [png(image) for image in pixels]

    def ask(number):
        row = number % len(files)
        return row, server.predict(files[row])

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(ask, range(200)))
    for row, (status, document, _) in found:
        assert status == 200
        check(bundle, document["images"], wanted, [row])
    assert server.metric("hardmoe_batch_images_count") - before < 150
    assert server.metric("hardmoe_expert_reads_total") >= EXPERTS
    assert server.metric('hardmoe_requests_total{path="/predict",status="200"}') >= 200


def test_what_cannot_be_decoded_is_named_and_the_rest_is_answered(server, bundle, wanted):
    files = [("text.jpg", b"a cat sat"), ("good.png", png(wanted[0][3])), ("empty.png", b"")]
    status, document, _ = server.predict(*form(files))
    assert status == 200
    first, second, third = document["images"]
    assert first == {
        "image": "text.jpg",
        "error": "not_an_image: not of an allowed format (JPEG, PNG, WebP, AVIF, GIF, BMP), whatever its name says",
    }
    assert third["error"].startswith("empty: ")
    check(bundle, [second], wanted, [3])
    assert server.ask("POST", "/embed", form(files)[0], form(files)[1] | {"Accept": "application/x-npy"})[0] == 422


@pytest.mark.parametrize(
    ("body", "headers", "words"),
    [
        (b"", {}, "no image could be decoded: empty: "),
        (b"a cat", {}, "no image could be decoded: not_an_image: "),
        (*form([("a", b"x"), ("b", b"y")]), "not_an_image: .*, and 1 more"),
        (*form([]), "no image: wanted a file as the body"),
        (b"--xyz\r\n\r\nx", form([])[1], "no image: wanted a file"),
        (b"rubbish", form([])[1], "the form cannot be read: "),
        (b"x", {"Content-Type": "multipart/form-data"}, "the form cannot be read: |no image: "),
        (b"x", {"Content-Type": "application/x-npy"}, "the body is no .npy file: wanted an array of uint8"),
        (*npy(np.zeros((1, 9, 9, 3), np.uint8)), r"the array is uint8 of shape \(1, 9, 9, 3\): wanted"),
        (*npy(np.zeros((1, SIDE, SIDE, 3))), "the array is float64"),
        (npy(images(2))[0][:-1], npy(images(1))[1], "its shape is"),
        (*npy(images(0)), "no image: "),
    ],
)
def test_a_body_that_cannot_be_used_says_why(server, body, headers, words):
    status, document, _ = server.predict(body, headers)
    assert status == 422
    assert re.search(words, document["error"]), document


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/predict?top=0", 422, "top: Input should be greater than or equal to 1"),
        ("POST", "/predict?top=x", 422, "top: Input should be a valid integer"),
        ("POST", "/predict?min_p=nan", 422, "min_p: "),
        ("POST", "/predict?precision=2", 422, "precision: Input should be less than or equal to 1"),
        ("GET", "/tags?top=10001", 422, "top: "),
        ("GET", "/predict", 405, "Method Not Allowed"),
        ("GET", "/nowhere", 404, "Not Found"),
        ("GET", "/docs", 404, "Not Found"),
    ],
)
def test_a_request_that_is_not_understood_says_why(server, method, path, status, words):
    found, document, _ = server.ask(method, path, b"x" if method == "POST" else None)
    assert (found, words in document["error"]) == (status, True), document


def test_it_tells_that_it_is_alive_and_which_mixture_answers(server):
    assert server.ask("GET", "/healthz")[:2] == (200, {"ok": True})
    status, document, _ = server.ask("GET", "/readyz")
    assert (status, document["ready"], document["mixture"]) == (200, True, "bundle")
    assert server.metric('hardmoe_mixture{version="bundle"}') == 1


def test_pages_of_other_sites_and_other_names_are_refused(server):
    here = f"127.0.0.1:{server.port}"
    for headers, status in (
        ({"Host": "evil.example"}, 421),
        ({"Host": here, "Origin": "http://evil.example"}, 403),
        ({"Host": here, "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": here, "Origin": f"http://{here}", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": f"localhost:{server.port}"}, 200),
    ):
        assert server.ask("GET", "/readyz", headers=headers)[0] == status, headers


def test_bodies_and_numbers_of_images_are_bounded(narrow):
    status, document, _ = narrow.predict(b"x" * (1 << 20) + b"x")
    assert status == 413
    assert document["error"].startswith("the body is larger than 1,048,576 bytes (--body)")
    assert narrow.predict(iter([b"x" * 300_000] * 8))[0] == 413  # in chunks, of no length that is told
    for body, headers in (npy(images(17)), form([(str(n), png()) for n in range(17)])):
        status, document, _ = narrow.predict(body, headers)
        assert status == 413
        assert document["error"].startswith("more than 16 images in one request (--images)")
    assert narrow.predict(*npy(images(16)))[0] == 200


def test_more_than_the_queue_holds_is_told_when_to_come_again(narrow):
    body, headers = npy(images(10))
    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda _: narrow.predict(body, headers), range(120)))
    assert {status for status, *_ in found} == {200, 429}
    refused = [answer for answer in found if answer[0] == 429]
    assert all(1 <= int(headers["Retry-After"]) <= 60 for *_, headers in refused)
    assert all(document["error"].startswith("busy: 10 images are waiting") for _, document, _ in refused)
    assert narrow.predict(body, headers)[0] == 200
    assert narrow.metric("hardmoe_held_images") == 0


def test_a_token_is_wanted_of_all_but_the_sign_of_life(bundle, tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    with serving("--bundle", bundle, "--host", "0.0.0.0", "--token-file", tmp_path / "token") as server:
        assert server.ask("GET", "/healthz")[0] == 200
        for path in ("/readyz", "/metrics", "/tags", "/openapi.json", "/nowhere"):
            status, document, headers = server.ask("GET", path)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
            assert document["error"].startswith("refused: this server wants a token")
        right = {"Authorization": f"Bearer {TOKEN}"}
        for sent in ("Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"bearer{TOKEN}", ""):
            assert server.predict(png(), {"Authorization": sent})[0] == 401
        assert server.predict(png(), right)[0] == 200
        assert server.ask("GET", "/metrics", headers=right)[0] == 200
        assert TOKEN not in json.dumps(server.ask("GET", "/openapi.json", headers=right)[1])


def test_requests_under_way_are_answered_before_it_ends(bundle):
    with serving("--bundle", bundle) as server, ThreadPoolExecutor(8) as pool:
        body, headers = npy(images(256))
        found = [pool.submit(server.predict, body, headers) for _ in range(8)]
        until(lambda: server.metric("hardmoe_held_images") >= 256 or all(each.done() for each in found))
        begun = time.monotonic()
        assert server.end() == 0, server.log()
        statuses = [each.result()[0] for each in found if not isinstance(each.exception(), ConnectionError)]
        assert statuses
        assert set(statuses) == {200}
        assert time.monotonic() - begun < 60
