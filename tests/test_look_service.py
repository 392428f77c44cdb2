"""The page and what it asks for, over HTTP in this process."""

import io
import re

import pytest
from PIL import Image

from helpers.bundles import bundle_at, images, random_parts
from helpers.kills import study
from helpers.look import page_of
from helpers.service import png
from moe_core.data.takedowns import Takedowns
from moe_core.search.opening import posts_of
from moe_core.service.following import fixed
from moe_core.service.guard import Token
from moe_core.service.sources import published_of
from moe_core.serving.bundle import Bundle
from moe_core.workspace import open_study

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def client(finished_store):
    file = finished_store / "study.toml"
    with page_of(published_of(file, None), posts_of(file)) as one:
        yield one


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = tmp_path_factory.mktemp("alone")
    return bundle_at(root / "bundle", random_parts(root, 0), precision="float32", tags=("<b>", "bob", "Bo", "a", "c"))


def test_the_page_is_of_this_server_alone(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = " ".join(page.headers.get_all("content-security-policy"))
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    parts = set(re.findall(r'(?:src|href)="(look/page/[^"]+)"', page.text))
    assert parts == {"look/page/style.css", "look/page/app.js"}
    seen = set()
    while parts - seen:
        (part, *_) = parts - seen
        seen.add(part)
        answer = client.get(f"/{part}")
        assert (answer.status, answer.headers["x-content-type-options"]) == (200, "nosniff")
        assert "innerHTML" not in answer.text
        assert not re.search(r"https?://(?!www\.w3\.org)[a-z]", answer.text), part
        parts |= {f"look/page/{name}" for name in re.findall(r'from "\./([a-z]+\.js)"', answer.text)}
    assert len(seen) > 8
    assert client.get("/look/page/__init__.py").status == 404
    assert client.get("/look/page/..%2flook.py").status == 404
    assert not [path for path in client.get("/openapi.json").json()["paths"] if path.startswith("/look")]


def test_it_says_what_there_is(client):
    about = client.get("/look/about").json()
    assert about["study"] == "tiny"
    assert about["posts"] == sum(about["splits"].values()) > 300
    assert [one["key"] for one in about["experts"]] == ["e000", "e001"]
    clusters = client.get("/look/experts").json()["experts"]
    assert sum(one["posts"] for one in clusters) == about["posts"]
    there = client.get("/look/map").json()
    assert there["of"] == about["posts"] == len(there["points"]) == len(there["ids"])
    assert {point[2] for point in there["points"]} == {0, 1}


def test_posts_are_listed_paged_and_shown(client):
    page = client.get("/look/posts", expert="e001", first=2, top=3).json()
    assert len(page["posts"]) == 3
    assert {post["expert"] for post in page["posts"]} == {"e001"}
    for order in ("worst", "suspect"):
        found = client.get("/look/posts", order=order, top=5).json()
        assert found["judged"][0] == found["judged"][1]
        assert all(post["doubt"]["loss"] > 0 for post in found["posts"])
    one = page["posts"][0]
    shown = client.get("/look/post", id=one["id"]).json()
    assert shown["post"] == one
    assert shown["why"]["experts"][0]["expert"] == "e001"
    assert len(shown["near"]) == 12
    assert one["id"] not in [post["id"] for post in shown["near"]]
    there = client.get("/look/map").json()
    assert there["points"][there["ids"].index(one["id"])][:2] == pytest.approx(shown["at"], abs=1e-3)
    picture = client.get("/look/picture", id=one["id"])
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).size == (16, 16)


def test_posts_are_searched_by_hashtag_post_and_image(client):
    tag, other = client.get("/look/tags", top=2).json()["tags"]
    asked = {"tag": [f"#{tag}"], "without": [other], "split": "train", "top": 7}
    found = client.get("/look/search", **asked).json()["posts"]
    assert [post["split"] for post in found] == ["train"] * 7
    assert [post["score"] for post in found] == sorted((post["score"] for post in found), reverse=True)
    first = found[0]["id"]
    like = client.get("/look/search", post=first, top=5).json()["posts"]
    assert first not in [post["id"] for post in like]
    picture = client.get("/look/picture", id=first).content
    by_image = client.post("/look/image", picture, top=5).json()
    assert by_image["posts"][0]["id"] == first
    assert [post["id"] for post in by_image["posts"][1:]] == [post["id"] for post in like[:4]]
    assert by_image["why"]["experts"][0]["expert"] == found[0]["expert"]
    assert len(by_image["at"]) == 2


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("posts?expert=e9", 422, "no expert 'e9'"),
        ("posts?split=exam", 422, "no split 'exam'"),
        ("posts?order=best", 422, "order 'best'"),
        ("posts?first=-1", 422, "first"),
        ("posts?top=201", 422, "top"),
        ("posts?tag=%23%23", 422, "is no hashtag"),
        ("post?id=nowhere", 404, "no post 'nowhere'"),
        ("post", 404, "no post ''"),
        ("picture?id=nowhere", 404, "no such picture"),
        ("search", 422, "nothing to search for"),
        ("search?tag=%3Cimg%20src=x%3E", 404, "no hashtag '<img src=x>'"),
        ("search?" + "tag=a&" * 30, 422, "tag"),
        ("page/none.js", 404, "no such file"),
    ],
)
def test_what_cannot_be_shown_is_an_error_that_says_why(client, path, status, error):
    answer = client.get(f"/look/{path}")
    assert (answer.status, error in answer.json()["error"]) == (status, True), answer.text


def test_an_unknown_hashtag_offers_near_ones(client):
    tag = next(tag for tag in client.get("/look/tags").json()["tags"] if len(tag) > 4)
    answer = client.get("/look/search", tag=tag + "x")
    assert tag in answer.json()["near"]


@pytest.mark.parametrize("body", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40)], ids=["empty", "text", "damaged"])
def test_a_body_that_is_no_image_is_refused(client, body):
    answer = client.post("/look/image", body)
    assert (answer.status, answer.json()["error"][:22]) == (422, "this image is not used")


def test_a_body_that_is_too_large_is_refused(client):
    assert client.post("/look/image", bytes((32 << 20) + 1)).status == 413


def test_a_takedown_is_shown_no_more(copied):
    file = copied.root / "study.toml"
    with page_of(published_of(file, None), posts_of(file)) as client:
        gone = client.get("/look/posts", top=1).json()["posts"][0]["id"]
        assert client.get("/look/picture", id=gone).status == 200
        Takedowns.record(open_study(study(), copied.root).store.documents, [gone], [])
        assert gone not in client.get("/look/map").json()["ids"]
        assert gone not in client.get("/look/posts").text
        assert client.get("/look/post", id=gone).status == 404
        assert client.get("/look/picture", id=gone).status == 404
        assert client.get("/look/search", post=gone).status == 404


def test_a_bundle_alone_answers_to_images_and_says_what_it_has_not(bundle):
    with page_of(fixed("bundle", Bundle(bundle))) as client:
        about = client.get("/look/about").json()
        assert (about["posts"], about["hashtags"], len(about["experts"])) == (None, 5, 4)
        assert "hardmoe serve --study" in about["why"]
        found = client.post("/look/image", png(images(1, seed=7)[0])).json()
        assert (found["posts"], found["at"]) == (None, None)
        assert len(found["why"]["mixture"]) == 5
        assert client.get("/look/tags", match="#b").json() == {"total": 3, "tags": ["bob", "Bo", "<b>"]}
        for path in ("experts", "posts", "post?id=a", "map", "search?tag=a"):
            assert client.get(f"/look/{path}").status == 409
        assert client.get("/look/picture?id=a").status == 503


def test_with_a_token_the_page_alone_is_public(bundle):
    with page_of(fixed("bundle", Bundle(bundle)), token=Token(TOKEN)) as client:
        assert client.get("/").status == 200
        assert client.get("/look/page/app.js").status == 200
        assert client.get("/look/about").status == 401
        assert client.get("/look/page/../about").status == 404
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert client.get("/look/about", headers=bearer).status == 200


def test_posts_that_come_later_are_found_and_a_study_without_any_says_so(copied):
    file = copied.root / "study.toml"
    aside = (copied.root / "search_index").rename(copied.root / "aside")
    with page_of(published_of(file, None), posts_of(file)) as client:
        about = client.get("/look/about").json()
        assert about["posts"] is None
        assert "no search index of mixture" in about["why"]
        aside.rename(copied.root / "search_index")
        assert client.get("/look/about").json()["posts"] > 300
