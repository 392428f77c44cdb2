"""The page of `hardmoe serve`, on a study with wicked texts, in a headless Chromium on a desktop and on a phone."""

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from helpers.browser import CHROMIUM, LONG, SCREENSHOTS, SHOWN_STUDY, WICKED, Watched, launched
from helpers.bundles import bundle_at, images, random_parts
from helpers.faulty import make_all
from helpers.kills import study
from helpers.service import png, serving
from moe_core.data.synonyms import read_stop_tags, read_synonyms
from moe_core.data.synthetic import synthetic_posts
from moe_core.settings import Source
from moe_core.study_file import dump_study
from moe_core.workspace import open_study

VIEWS = ("clusters", "posts", "worst", "suspects", "map", "tags")
TOKEN = "0123456789abcdef"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The file of a small study whose first posts have wicked ids and users, all of it made. To be copied."""
    root = tmp_path_factory.mktemp("look")
    posts = pl.concat([pl.from_arrow(batch) for batch in synthetic_posts(0, 1, 400, seed=0)])
    ids, users = posts["id"].to_list(), posts["user"].to_list()
    ids[: len(WICKED)], users[: len(WICKED)] = WICKED, WICKED
    columns = pl.Series("id", ids), pl.Series("user", users)
    posts.select("image", "tags", "taken_at", *columns).write_parquet(root / "posts.parquet")
    settings = study().model_copy(update={"source": Source(format="parquet", uri=str(root / "posts.parquet"))})
    (root / "study.toml").write_text(dump_study(settings), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARDMOE_THREADS", "1")
        make_all(open_study(settings, root))
    return root / "study.toml"


@pytest.fixture(scope="module")
def server(made):
    with serving("--study", made) as one:
        yield one


@pytest.fixture(scope="module")
def chromium():
    with launched() as browser:
        yield browser


@pytest.fixture(params=[("desktop", 1400, 1000), ("phone", 390, 844)], ids=lambda size: size[0])
def seen(chromium, request):
    """A page of one size that says nothing in its console, asks nothing of others and never scrolls sideways."""
    name, width, height = request.param
    context = chromium.new_context(
        viewport={"width": width, "height": height}, has_touch=name == "phone", accept_downloads=True
    )
    watch = Watched(context.new_page())
    watch.page.set_default_timeout(LONG)
    yield SimpleNamespace(page=watch.page, watch=watch, name=name, width=width)
    watch.check_own()
    context.close()


def at(seen, server, view=""):
    """Opens a view, and waits for it."""
    seen.page.goto(f"http://127.0.0.1:{server.port}/#/{view}")
    seen.page.locator("h1").first.wait_for()
    return seen.page


def fits(seen):
    return seen.page.evaluate("document.documentElement.scrollWidth") <= seen.width


def loaded(pictures):
    """Natural widths of pictures, once they are there."""
    for one in pictures.all():
        one.scroll_into_view_if_needed()
    return {one.evaluate("image => image.decode().then(() => image.naturalWidth)") for one in pictures.all()}


def test_clusters_show_their_posts_and_hashtags(server, seen):
    page = at(seen, server)
    assert page.locator(".cluster").count() == 2
    assert page.locator(".cluster .strip img").count() == 24
    assert loaded(page.locator(".cluster .strip img")) == {16}
    assert page.locator(".cluster .tag").count() == 16
    page.locator(".cluster .expert").first.click()
    page.locator(".card").first.wait_for()
    assert page.locator("select[aria-label=expert]").input_value() == "e000"


@pytest.mark.parametrize("view", VIEWS)
def test_no_view_is_wider_than_the_screen(server, seen, view):
    page = at(seen, server, view)
    assert fits(seen)
    if view not in ("map", "tags"):
        page.locator(".open").first.click()
        page.locator("#detail dl").wait_for()
        assert fits(seen)
        seen.watch.shoot(f"test-look-{view}-{seen.name}")
        page.locator("#detail .close").click()
        assert page.locator("#detail").is_hidden()


def test_pages_turn_and_the_address_remembers(server, seen):
    page = at(seen, server, "posts")
    first = page.locator("[data-post]").first.get_attribute("data-post")
    page.get_by_role("button", name="Next").first.click()
    page.get_by_text("61 to 120 of").first.wait_for()
    assert page.locator(f"[data-post='{first}']").count() == 0 or first in WICKED
    page.reload()
    page.get_by_text("61 to 120 of").first.wait_for()
    page.go_back()
    page.get_by_text("1 to 60 of").first.wait_for()


def test_a_hashtag_finds_posts_and_an_unknown_one_offers_others(server, seen):
    page = at(seen, server, "tags")
    known = next(tag for tag in page.locator("main .tag").all_inner_texts() if len(tag) > 5)
    page.locator("#query").fill(known)
    page.locator("#query").press("Enter")
    page.get_by_role("heading", name=known, exact=True).wait_for()
    assert page.locator(".card").count() == 60
    page.locator("#query").fill(f"{known}x")
    page.get_by_role("button", name="Search").click()
    page.get_by_text("Did you mean").wait_for()
    page.locator("main .tag", has_text=known).first.click()
    page.get_by_role("heading", name=known, exact=True).wait_for()
    forgive(seen, 404)


def forgive(seen, status):
    """Chromium itself notes each answer that is an error; here one was wanted."""
    noted = f"Failed to load resource: the server responded with a status of {status} "
    seen.watch.errors = [said for said in seen.watch.errors if not said.startswith(noted)]


DROP = """([name, data]) => {
  const files = new DataTransfer();
  files.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, {type: "image/png"}));
  return files;
}"""


def test_a_dropped_image_finds_its_post_and_says_why(server, seen):
    page = at(seen, server)
    post = page.locator(".cluster button.open").first.get_attribute("aria-label").removeprefix("Post ")
    _, picture, _ = server.ask("GET", f"/look/picture?id={post}")
    files = page.evaluate_handle(DROP, ["<b>.png", base64.b64encode(picture).decode()])
    page.dispatch_event("main", "dragover", {"dataTransfer": files})
    assert page.locator("#drop").is_visible()
    page.dispatch_event("main", "drop", {"dataTransfer": files})
    page.get_by_role("heading", name="Why this expert").wait_for()
    assert page.locator("#drop").is_hidden()
    assert page.locator("[data-post]").first.get_attribute("data-post") == post
    assert page.locator(".distances tr").count() == 2
    assert page.get_by_text("<b>.png").is_visible()
    assert fits(seen)
    seen.watch.shoot(f"test-look-image-{seen.name}")


def test_a_file_that_is_no_image_is_refused_in_words(server, seen):
    page = at(seen, server)
    page.locator("#file").set_input_files({"name": "x.png", "mimeType": "image/png", "buffer": b"no image"})
    page.get_by_role("alert").get_by_text("this image is not used").wait_for()
    forgive(seen, 422)


def test_text_of_users_stays_text(server, seen):
    page = at(seen, server, "posts")
    for text in WICKED[:2]:
        page.get_by_role("button", name=f"Post {text}").click()
        page.locator("#detail dl").wait_for()
        assert page.locator("#detail dd").all_inner_texts()[0] == text
        page.locator("#detail dd a", has_text=text).click()
        page.get_by_text("1 to 1 of 1").first.wait_for()
        assert page.locator("input[aria-label=user]").input_value() == text
        if page.locator("#detail .close").is_visible():
            page.locator("#detail .close").click()
        seen.watch.check_own()
        at(seen, server, "posts")
    page.locator("#query").fill(WICKED[0].replace(" ", "\u00a0"))
    page.locator("#query").press("Enter")
    page.locator("main h1", has_text="<img").wait_for()
    page.get_by_text("onerror=alert(1)").first.wait_for()
    forgive(seen, 404)


COLORS = """canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size;
}"""


def test_the_map_is_drawn_and_opens_a_post(server, seen):
    page = at(seen, server, "map")
    canvas = page.locator("canvas")
    box = canvas.bounding_box()
    page.wait_for_timeout(100)
    assert canvas.evaluate(COLORS) > 10
    found = page.evaluate("fetch('look/map').then((answer) => answer.json())")
    xs, ys = ([point[axis] for point in found["points"]] for axis in (0, 1))
    place = [(0.04 + 0.92 * (all_of[0] - min(all_of)) / (max(all_of) - min(all_of))) for all_of in (xs, ys)]
    canvas.click(position={"x": place[0] * box["width"], "y": (1 - place[1]) * box["height"]})
    page.locator("#detail dl").wait_for()
    assert page.locator("#detail dd").first.inner_text() in found["ids"]


def test_a_selection_is_saved_as_files_that_the_commands_take(server, made, seen, tmp_path):
    page = at(seen, server, "posts")
    for text in (WICKED[0], WICKED[5]):
        page.locator(f"[aria-label={json.dumps('Select ' + text)}]").check()
    assert page.locator("#basket").get_by_text("2 posts").is_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save ids.txt").click()
    download.value.save_as(tmp_path / "ids.txt")
    assert (tmp_path / "ids.txt").read_text("utf-8") == f"{WICKED[0]}\n{WICKED[5]}\n"
    found = json.loads(forget(made, tmp_path / "ids.txt", "--dry-run", "--json"))
    assert (found["posts"], found["unknown"]) == (2, [])
    page.locator("a[href='#/tags']").click()
    tags = page.locator("main .tag")
    tags.first.wait_for()
    first, second = (text.removeprefix("#") for text in tags.all_inner_texts()[:2])
    tags.first.click()
    page.get_by_label("Stop list").check()
    page.get_by_label(f"What #{first} means").fill(f"#{second}")
    page.get_by_role("button", name="Add synonym").click()
    for name in ("stop_tags.txt", "synonyms.txt"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Save {name}").click()
        download.value.save_as(tmp_path / name)
    assert read_stop_tags(str(tmp_path / "stop_tags.txt"), "keep").to_list() == [first]
    assert read_synonyms(str(tmp_path / "synonyms.txt"), "keep") == {first: second}
    assert fits(seen)
    page.get_by_role("button", name="Clear posts").click()
    page.get_by_role("button", name="Clear stop tags").click()
    page.get_by_role("button", name="Clear synonyms").click()
    assert page.locator("#basket").is_hidden()


def forget(study_file, ids, *options):
    command = [sys.executable, "-m", "pipelines.cli.main", "forget", "--study", study_file, "--ids", ids, *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_takedown_vanishes_with_the_next_reload(made, chromium, tmp_path):
    copy = shutil.copytree(made.parent, tmp_path / "copy") / made.name
    page = chromium.new_page()
    page.set_default_timeout(LONG)
    with serving("--study", copy) as server:
        page.goto(f"http://127.0.0.1:{server.port}/#/posts")
        for text in WICKED[:2]:
            page.get_by_role("button", name=f"Post {text}").wait_for()
        (tmp_path / "ids.txt").write_text(WICKED[0])
        forget(copy, tmp_path / "ids.txt", "--apply")
        page.reload()
        page.get_by_role("button", name=f"Post {WICKED[1]}").wait_for()
        assert page.get_by_role("button", name=f"Post {WICKED[0]}").count() == 0
        assert WICKED[0] not in page.evaluate("fetch('look/map').then((answer) => answer.text())")
        page.close()


def test_a_bundle_alone_shows_what_it_can(chromium, tmp_path):
    folder = bundle_at(tmp_path / "bundle", random_parts(tmp_path, 0), tags=WICKED[:5])
    context = chromium.new_context(viewport={"width": 390, "height": 844})
    watch = Watched(context.new_page())
    with serving("--bundle", folder) as server:
        watch.page.goto(f"http://127.0.0.1:{server.port}/")
        watch.page.get_by_text("hardmoe serve --study STUDY").wait_for()
        watch.page.locator("#file").set_input_files(
            {"name": "x.png", "mimeType": "image/png", "buffer": png(images(1, seed=7)[0])}
        )
        watch.page.get_by_role("heading", name="Why this expert").wait_for()
        said = watch.page.locator(".answers").first.inner_text()
        assert [tag for tag in WICKED[:5] if f"#{tag}" not in said] == []
        watch.page.locator("a[href='#/tags']").click()
        watch.page.locator("main .tag", has_text="<img src=x").wait_for()
        assert watch.page.locator("main a.tag").count() == 0
        assert watch.page.evaluate("document.documentElement.scrollWidth") <= 390
        watch.check_own()
        context.close()


def test_a_server_with_a_token_asks_for_it(made, chromium):
    page = chromium.new_page()
    page.set_default_timeout(LONG)
    held = []
    with serving("--study", made, HARDMOE_TOKEN=TOKEN) as server:
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.get_by_text("This server wants its token.").wait_for()
        page.route("**/look/about", lambda route: held.append(route), times=1)
        page.get_by_label("Token").fill("wrong")
        with page.expect_request("**/look/about"):
            page.get_by_role("button", name="Enter").click()
        assert page.get_by_label("Token").count() == 0  # what is typed while it asks would be lost
        held.pop().continue_()
        page.get_by_text("This token is wrong.").wait_for()
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Enter").click()
        page.locator(".cluster").first.wait_for()
        assert loaded(page.locator(".cluster .strip img")) == {16}
        page.reload()
        page.locator(".cluster").first.wait_for()
        page.close()


# The body of the first answer whose address holds a word is there only once `late()` is called.
LATE = """(word) => {
  const whole = Response.prototype.json;
  let waits = new Promise((done) => (window.late = done));
  Response.prototype.json = async function () {
    const body = await whole.call(this).catch(() => ({}));
    if (!this.url.includes(word)) return body;
    const until = waits;
    waits = null;
    await until;
    return body;
  };
}"""


def test_the_view_is_of_what_was_asked_last(server, seen):
    page = at(seen, server)
    page.evaluate(LATE, "order=stored")
    with page.expect_response("**/look/posts?*order=stored*"):
        page.evaluate("location.hash = '#/posts'")
    page.evaluate("location.hash = '#/tags'")
    page.get_by_role("heading", name="Hashtags").wait_for()
    page.evaluate("late()")
    page.wait_for_timeout(100)
    assert page.locator("h1").all_inner_texts() == ["Hashtags"]


def test_of_two_images_the_last_is_answered(server, seen):
    page = at(seen, server)
    page.evaluate(LATE, "look/image")
    for seed in (0, 1):
        with page.expect_response("**/look/image?*"):
            page.locator("#file").set_input_files(
                {"name": f"{seed}.png", "mimeType": "image/png", "buffer": png(seed=seed)}
            )
    page.get_by_text("1.png", exact=True).wait_for()
    page.evaluate("late()")
    page.wait_for_timeout(100)
    assert page.get_by_text("1.png", exact=True).is_visible()
    assert page.get_by_text("0.png", exact=True).count() == 0


@pytest.mark.skipif(not (SCREENSHOTS and SHOWN_STUDY), reason="pictures for the docs: make screenshots")
def test_pictures_for_the_docs_are_of_the_study_that_they_show(chromium):
    context = chromium.new_context(viewport={"width": 1400, "height": 1000})
    watch = Watched(context.new_page())
    watch.page.set_default_timeout(LONG)
    with serving("--study", Path(SHOWN_STUDY)) as server:
        for view in ("clusters", "suspects"):
            watch.page.goto(f"http://127.0.0.1:{server.port}/#/{view}")
            watch.page.locator("main .tag").first.wait_for()
            watch.page.wait_for_load_state("networkidle")
            watch.shoot(f"look-{view}-desktop")
        watch.check_own()
        context.close()
