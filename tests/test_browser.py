"""Dagster's UI as `hardmoe ui` starts it, and the report, in a headless Chromium.

helpers/browser.py says where pictures of what was seen go.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.browser import CHROMIUM, LONG, SCREENSHOTS, SHOWN_STUDY, WICKED, Watched, launched
from moe_core.recipes import demo
from moe_core.settings import Data, Network, Partition, Source, Training
from moe_core.stages.graph import GRAPH
from moe_core.study_file import dump_study, load_study
from moe_core.workspace import open_study

DIALOG = ":is([role=dialog], [class*=dialog])"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium"),
]


def hardmoe(*arguments):
    command = [sys.executable, "-m", "pipelines.cli.main", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment():
    return {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A tiny study of posts with wicked tags, made up to its partition."""
    import polars as pl

    from moe_core.data.synthetic import synthetic_posts

    root = tmp_path_factory.mktemp("browser")
    posts = pl.concat([pl.from_arrow(batch) for batch in synthetic_posts(0, 1, 1200, seed=0)])
    tags = posts["tags"].to_list()
    for number in range(120):
        tags[number].append(WICKED[number % len(WICKED)])
    posts.with_columns(pl.Series("tags", tags)).write_parquet(root / "posts.parquet")
    training = Training(epochs=8, batch_size=32, lr=0.2, flip=False, crop=1)
    settings = demo().model_copy(
        update={
            "name": "harbour",
            "source": Source(format="parquet", uri=str(root / "posts.parquet")),
            "data": Data(image_size=16, min_posts_per_tag=5, test=0.2, validation=0.1),
            "network": Network(widths=(4, 8), depths=(1, 1), embedding=16),
            "trunk": training,
            "expert_training": training.model_copy(update={"epochs": 250}),  # some ten seconds: long enough to watch
            "partition": Partition(experts=3, pca=8),
            "evaluation": demo().evaluation.model_copy(update={"controls": False}),
        }
    )
    (root / "study.toml").write_text(dump_study(settings), "utf-8")
    hardmoe("run", "--study", root / "study.toml", "--until", "partition")
    return root / "study.toml"


@pytest.fixture(scope="module")
def ui(study):
    """Address of the webserver; its daemon runs beside it."""
    with served(study) as address:
        yield address


@contextmanager
def served(study):
    """`hardmoe ui` on a study, ended at the end: its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pipelines.cli.main", "ui", "--study", str(study), "--port", str(port)]
    with open(study.parent / "ui.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(), start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 180
        while not _answers(address):
            assert process.poll() is None, (study.parent / "ui.log").read_text()
            assert time.monotonic() < deadline, "the webserver did not come up"
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(address):
    try:
        with urllib.request.urlopen(f"{address}/server_info", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def chromium():
    with launched() as browser:
        yield browser


@pytest.fixture
def watched(chromium):
    context = chromium.new_context(viewport={"width": 1400, "height": 1000}, device_scale_factor=1)
    watch = Watched(context.new_page())
    watch.page.set_default_timeout(LONG)
    yield watch
    watch.check()
    context.close()


def pictures(page, where):
    """Natural widths of the pictures in a part of the page, once they are loaded."""
    found = page.locator(f"{where} img[src^='data:image/svg+xml']")
    found.first.wait_for()
    return [one.evaluate("image => image.decode().then(() => image.naturalWidth)") for one in found.all()]


def metadata(page):
    return page.locator("table").filter(has_text="made from").first


def test_every_asset_is_in_the_catalog(ui, study, watched):
    page = watched.page
    page.set_viewport_size({"width": 1400, "height": 2600})  # rows out of sight are not in the page
    page.goto(f"{ui}/assets")
    its = load_study(study)
    for name in (*GRAPH.for_study(its), "expert_shard"):
        page.locator(f"a[href$='/assets/{name}']").first.wait_for()
    assert page.get_by_text("Join the Dagster community").count() == 0


def test_a_backfill_of_the_experts_finishes_while_one_watches(ui, study, watched):
    page = watched.page
    page.goto(f"{ui}/assets/expert?view=partitions")
    page.get_by_text("Missing (3)").wait_for()
    page.get_by_role("button", name="Materialize…").first.click()
    page.get_by_role("button", name="Missing", exact=True).click()
    page.get_by_role("button", name="Launch backfill").click()
    page.wait_for_timeout(2000)
    deadline = time.monotonic() + 180
    while not page.get_by_text("percent done").count():  # the page does not always look again by itself
        assert time.monotonic() < deadline
        page.goto(f"{ui}/assets/expert?view=events")
        page.wait_for_timeout(3000)
    work = open_study(load_study(study), study.parent)
    assert not all(work.find("expert", key) for key in work.experts)  # it is seen while they are trained
    watched.shoot("ui-progress")
    page.goto(f"{ui}/assets/expert?view=partitions")
    page.get_by_text("Materialized (3)").wait_for(timeout=3 * LONG)
    assert all(work.find("expert", key) for key in work.experts)


def test_an_asset_is_materialized_from_its_button(ui, study, watched):
    page = watched.page
    page.goto(f"{ui}/assets/shared_decoder")
    page.get_by_role("button", name="Materialize").first.click()
    page.get_by_text("Launched run").wait_for()
    deadline = time.monotonic() + 2 * LONG / 1000
    while not metadata(page).is_visible():
        assert time.monotonic() < deadline, page.locator("body").inner_text()
        page.wait_for_timeout(2000)
        page.reload()
        page.get_by_text("Latest materialization").wait_for()
        page.wait_for_timeout(1000)
    assert open_study(load_study(study), study.parent).find("shared_decoder") is not None


@pytest.fixture(scope="module")
def finished(ui, study):
    """The rest of the graph by the command, while the UI runs."""
    hardmoe("run", "--study", study)
    return study


def test_curves_and_hashtags_of_an_expert_are_seen(finished, ui, watched):
    page = watched.page
    page.goto(f"{ui}/assets/expert?view=partitions&partition=e001")
    metadata(page).wait_for()
    assert pictures(page, "table") == [300, 300]  # loss and learning rate, at once
    for said in ("hashtags that set it apart", "typical posts", "lifted and lowered"):
        metadata(page).filter(has_text=said).wait_for()
    watched.shoot("ui-expert")
    page.get_by_text("[Show Markdown]").first.click()
    assert pictures(page, DIALOG) == [460, 460]
    watched.shoot("ui-curves")


def test_the_partition_the_rejects_and_the_vocabulary_are_tables(finished, ui, watched):
    page = watched.page
    for asset, words in (
        ("partition", ("e000", "e002", "contact sheets")),
        ("vocabulary", ("left out", "hashtag")),
        ("evaluation", ("best_expert_oracle", "✓", "published P@1", "hashtags lifted most")),
        ("mixture", ("gain in cross-entropy",)),
        ("posts?view=partitions&partition=" + key_of_posts(finished), ("rejects by reason", "not_an_image", "row ")),
    ):
        page.goto(f"{ui}/assets/{asset}")
        metadata(page).wait_for()
        for word in words:
            metadata(page).filter(has_text=word).wait_for()
        assert "{" not in metadata(page).inner_text(), "raw JSON"
        watched.shoot("ui-" + asset.split("?")[0])
        watched.check()


def key_of_posts(study):
    return open_study(load_study(study), study.parent).shards[0].key


def test_the_history_of_a_number_is_plotted(finished, ui, watched):
    page = watched.page
    page.goto(f"{ui}/assets/evaluation")
    metadata(page).wait_for()
    page.get_by_text("Plots", exact=True).click()
    page.locator("canvas").first.wait_for()


WRITE = """
import json, sys
import dagster as dg
from assets.showing import cell, picture, table
from moe_core.evaluation.plots import bars

wicked = json.loads(sys.argv[1])
said = {"cell": dg.MetadataValue.md("\\n\\n".join(map(cell, wicked)))}
said |= {"short": table(("tag",), [(tag,) for tag in wicked]), "long": table(("tag",), [(tag,) for tag in wicked * 9])}
said |= {"bars": picture(bars([(tag, 1) for tag in wicked], wicked[0]), wicked[2])}
with dg.DagsterInstance.get() as instance:
    instance.report_runless_asset_event(dg.AssetMaterialization("evaluation", metadata=said))
"""


def test_wicked_text_stays_text_in_the_ui(ui, study, watched):
    variables = environment() | {"HARDMOE_STUDY": str(study), "DAGSTER_HOME": str(study.parent / "dagster")}
    subprocess.run([sys.executable, "-c", WRITE, json.dumps(WICKED)], env=variables, check=True)
    page = watched.page
    page.goto(f"{ui}/assets/evaluation")
    shown = page.locator("table").filter(has_text="short").first
    shown.get_by_text("_cell_").nth(10).wait_for()  # Markdown comes later than tables
    text = shown.inner_text().replace("\u2060", "")  # which keeps the UI from making links
    assert [tag for tag in WICKED if text.count(tag) < 11] == []  # a cell, a short table and nine in a long one
    watched.check()
    page.get_by_text("[Show Markdown]").first.click()
    assert pictures(page, DIALOG) == [460]


def test_the_report_opens_from_its_asset(finished, ui, watched):
    page = watched.page
    page.goto(f"{ui}/assets/report")
    with page.context.expect_page() as opened:
        metadata(page).get_by_text("/hardmoe/report/").click()
    opened.value.locator("#measures tr.published").wait_for()
    assert opened.value.locator(".expert img").count() == 6


@pytest.mark.parametrize(("name", "width"), [("desktop", 1200), ("phone", 390)])
def test_the_report_fits_the_screen_and_asks_nothing_of_the_network(finished, watched, name, width):
    page = watched.page
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(Path(hardmoe("report", "--study", finished).strip()).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#measures tr.published").count() == 1
    assert page.locator(".expert img").count() == 6
    widths = [
        one.evaluate("image => image.decode().then(() => image.naturalWidth)") for one in page.locator("img").all()
    ]
    assert set(widths) == {6 * 64}
    assert (
        page.evaluate("performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length") == 0
    )
    watched.shoot(f"report-{name}")
    page.locator(".expert").first.scroll_into_view_if_needed()
    page.evaluate("document.querySelector('.expert').scrollIntoView()")
    watched.shoot(f"report-{name}-experts")


@pytest.fixture(scope="module")
def shown_study(tmp_path_factory):
    """A copy of the study that the docs show, all of it made: its mixture is better than the trunk."""
    if not (SCREENSHOTS and SHOWN_STUDY):
        pytest.skip("HARDMOE_SCREENSHOTS and HARDMOE_SCREENSHOTS_STUDY name no folder and no study: make screenshots")
    study = Path(SHOWN_STUDY)
    copy = shutil.copytree(study.parent, tmp_path_factory.mktemp("shown") / "study") / study.name
    hardmoe("run", "--study", copy)
    comparison = json.loads(hardmoe("results", "--study", copy, "--json"))["comparison"]
    assert {"trunk": "better", "trunk_same_budget": "better"}.items() <= {
        each["row"]: each["outcome"] for each in comparison["compared"]
    }.items(), "the docs show a gain: train a study that has one"
    return copy


def test_pictures_for_the_docs_are_of_a_run_with_a_real_gain(shown_study, watched):
    page = watched.page
    table = json.loads(hardmoe("results", "--study", shown_study, "--json"))
    best = max((row for row in table["per_expert"] if row["n"]), key=lambda row: row["p_at_1_gain_ci95"][0])
    with served(shown_study) as address:
        page.goto(f"{address}/assets/expert?view=partitions&partition={best['expert']}")
        metadata(page).wait_for()
        metadata(page).filter(has_text="P@1 gain over the trunk").wait_for()
        watched.shoot("ui-expert")
        page.get_by_text("[Show Markdown]").first.click()
        assert pictures(page, DIALOG) == [460, 460]
        watched.shoot("ui-curves")
        page.goto(f"{address}/assets/evaluation")
        metadata(page).filter(has_text="worth its cost").wait_for()
        watched.shoot("ui-evaluation")
    for name, width in (("desktop", 1200), ("phone", 390)):
        page.set_viewport_size({"width": width, "height": 844})
        page.goto(Path(hardmoe("report", "--study", shown_study).strip()).as_uri())
        page.locator("#comparison").wait_for()
        watched.shoot(f"report-{name}")
        page.evaluate(f"document.getElementById('{best['expert']}').scrollIntoView()")
        watched.shoot(f"report-{name}-experts")
