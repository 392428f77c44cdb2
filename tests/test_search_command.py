"""`hardmoe search`, in this process on a copy of a finished study."""

import json
import re

import pytest
from click.testing import CliRunner

from helpers.kills import study
from moe_core.search.page import render
from moe_core.search.searcher import Hit, Searcher
from moe_core.workspace import open_study
from pipelines.cli.main import main


@pytest.fixture(scope="module")
def searcher(finished_store):
    return Searcher(open_study(study(), finished_store))


def run(root, *arguments):
    return CliRunner().invoke(main, ["search", "--study", str(root), *map(str, arguments)])


def test_json_has_the_hits_the_route_and_the_index(finished_store, searcher, tmp_path):
    tag, post = searcher.bundle.hashtags[0], searcher.find(tags=[searcher.bundle.hashtags[0]], top=1)[0].id
    (tmp_path / "x.png").write_bytes(searcher.picture(post))
    asked = ["--image", tmp_path / "x.png", "--tag", tag, "--split", "train", "--since", "2024", "--top", 3, "--json"]
    done = run(finished_store, *asked)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["mixture"] == searcher.mixture.version
    assert document["index"] | {"version": ""} == {
        "version": "",
        "posts": len(searcher),
        "lists": 1,
        "probes": 1,
        "recall": {},
        "exact": True,
    }
    ((image, key, is_published),) = (entry.values() for entry in document["images"])
    assert (image, is_published) == (str(tmp_path / "x.png"), searcher.published[key])
    assert len(document["hits"]) == 3
    assert {hit["split"] for hit in document["hits"]} == {"train"}
    wanted = {"id", "score", "tags", "expert", "expert_published", "split", "user", "taken_at", "original", "shard"}
    assert set(document["hits"][0]) == wanted


def test_lines_and_a_page_show_the_same_posts(finished_store, searcher, tmp_path):
    tag = searcher.bundle.hashtags[1]
    done = run(
        finished_store, "--tag", tag, "--not", searcher.bundle.hashtags[2], "--top", 4, "--html", tmp_path / "a.html"
    )
    assert done.exit_code == 0, done.output
    ids = [line.split()[1] for line in done.stdout.splitlines()]
    page = (tmp_path / "a.html").read_text("utf-8")
    assert len(ids) == 4
    assert all(one in page for one in ids)
    assert page.count('src="data:image/png;base64,') == 4
    assert not re.search(r'(src|href)="(?!data:)', page), "nothing is loaded"


def test_text_of_users_stays_text_and_only_urls_are_links(searcher):
    odd = {"tags": ["<b>x</b>"], "expert": "e000", "split": None, "user": "<i>&", "taken_at": None, "shard": "s"}
    hits = [
        Hit(id="<script>1</script>", score=0.5, original='javascript:alert("1")', **odd),
        Hit(id="a", score=0.4, original="https://x.test/a?b=1&c=\"'>", **odd),
    ]
    page = render(searcher, "<img src=x>", "about", hits)
    assert not re.search("<script|<b>x|<i>|<img src=x", page)
    assert re.findall('href="([^"]*)"', page) == ["https://x.test/a?b=1&amp;c=&#34;&#39;&gt;"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "nothing to search for"),
        (("--tag", "qqqqqqqq"), "no hashtag 'qqqqqqqq' among the"),
        (("--post", "qqqqqqqq"), "no post 'qqqqqqqq' among the"),
        (("--image", "gone.jpg"), "gone.jpg: No such file"),
        (("--tag", "a", "--since", "then"), "date 'then': wanted such as 2015"),
        (("--tag", "a", "--html", "no/such/a.html"), "there is no folder"),
        (("--tag", "a", "--version", "zz"), "0 versions of mixture"),
        (("--tag", "a", "--top", "0"), "top 0: wanted 1 to"),
    ],
)
def test_a_mistake_is_one_line(finished_store, arguments, words):
    done = run(finished_store, *arguments)
    assert done.exit_code == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
