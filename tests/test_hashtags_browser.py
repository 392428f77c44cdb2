"""The report's table of hashtags sorts and filters in a headless Chromium, on a desktop and on a phone."""

import pytest

from helpers.browser import CHROMIUM, Watched, launched
from helpers.report import WICKED, rendered
from pipelines.ui.report_page import HEADERS

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium"),
]
TAGS = ("sea", "sand", "sandal", *WICKED)


@pytest.fixture
def opened(tmp_path, request):
    """The page in a window of some width."""
    (tmp_path / "report.html").write_text(rendered(TAGS), "utf-8")
    with launched() as browser:
        page = browser.new_page(viewport={"width": request.param, "height": 844})
        watched = Watched(page)
        page.goto((tmp_path / "report.html").as_uri())
        yield page, watched


def tags(page):
    return page.locator("#hashtags tbody tr:visible td:first-child").all_inner_texts()


@pytest.mark.parametrize("opened", [1200, 390], indirect=True)
def test_hashtags_are_sorted_and_filtered_without_a_network(opened):
    page, watched = opened
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert tags(page) == list(TAGS)
    page.fill("#hashtag-text", "#SAND")
    assert tags(page) == ["sand", "sandal"]
    assert page.locator("#hashtag-count").inner_text() == f"2 of {len(TAGS)}"
    page.fill("#hashtag-text", "")
    page.select_option("#hashtag-band", "head")
    assert tags(page) == ["sea"]
    page.select_option("#hashtag-band", "")
    head = page.locator("#hashtags thead th")
    head.nth(7).locator("button").click()  # AP: of one alone, which comes first both ways
    assert tags(page)[0] == "sea"
    head.nth(7).locator("button").click()
    assert (tags(page)[0], head.nth(7).get_attribute("aria-sort")) == ("sea", "ascending")
    head.nth(0).locator("button").click()
    assert [tag for tag in tags(page) if tag in ("sea", "sand", "sandal")] == ["sand", "sandal", "sea"]
    head.nth(2).locator("button").click()  # training posts: 9, then 3 of each other
    assert tags(page)[0] == "sea"
    assert (head.nth(0).get_attribute("aria-sort"), head.nth(2).get_attribute("aria-sort")) == (None, "descending")
    watched.check_own()


@pytest.mark.parametrize("opened", [1200], indirect=True)
def test_the_script_runs_in_the_sandbox_beside_dagster_s_ui_and_no_other_does(opened):
    page, watched = opened
    address = "http://127.0.0.1:9/hardmoe/report"
    text = rendered(TAGS).replace("</body>", "<script>document.title = 'another'</script></body>")
    page.route(address, lambda route: route.fulfill(body=text, content_type="text/html", headers=HEADERS))
    page.goto(address)
    page.fill("#hashtag-text", "sand")
    assert tags(page) == ["sand", "sandal"]
    assert page.title() != "another"
    assert page.evaluate("self.origin") == "null", "an origin of its own"
    assert [error for error in watched.errors if "script" in error]
