"""`import moe_core as hm`: what a notebook asks of a mixture."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import moe_core as hm
from helpers.partitioned import hardmoe
from moe_core.errors import BadImage, BadSetting, BadSource, MissingInput, Unknown
from moe_core.serving.publication import published_bundle

NOTEBOOK = Path(__file__).parents[1] / "docs/tutorial/ask.ipynb"


@pytest.fixture(scope="module")
def mixture(finished_store):
    return hm.open(finished_store)


@pytest.fixture
def files(mixture, tmp_path):
    """A folder with the pictures of three posts, and one file that is no picture."""
    for number, post in enumerate(mixture.posts()["id"].head(3)):
        mixture.picture(post).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture by its name")
    return tmp_path


def test_the_mixture_of_a_study_and_a_bundle_alone_answer_alike(mixture, finished_store, files):
    bundle = hm.open(published_bundle(finished_store))
    assert bundle.version == mixture.version == published_bundle(finished_store).name
    assert bundle.predict(files) == mixture.predict(files)
    assert (mixture.experts, len(mixture.hashtags)) == (["e000", "e001"], len(set(mixture.hashtags)))
    for ask in (lambda: bundle.posts(), lambda: bundle.search(tag="x"), lambda: bundle.picture("x")):
        with pytest.raises(BadSetting, match=r"needs the posts of a study, and .* is a bundle alone"):
            ask()


def test_predictions_are_those_of_the_command(mixture, finished_store, files):
    said = json.loads(hardmoe("predict", "--study", finished_store, files, "--json", "--top", 4).stdout)
    wanted = {each["image"]: each for each in said if "skipped" not in each}
    found = mixture.predict(files, top=4)
    assert [each.image for each in found] == sorted(wanted)
    for each in found:
        about = wanted[each.image]
        assert each.error == about.get("error")
        assert each.expert == about.get("expert")
        assert each.tags == {tag["tag"]: tag["p"] for tag in about.get("tags", ())}
    assert [each.image.rpartition("/")[2] for each in found if each.error] == ["broken.jpg"]


def test_a_picture_may_be_a_path_bytes_an_array_or_pillows(mixture, files):
    path = files / "0.png"
    image = Image.open(path)
    given = [path, str(path), path.read_bytes(), np.asarray(image), image]
    answers = mixture.predict(given, top=2)
    assert all(answer.tags == answers[0].tags and answer.expert == answers[0].expert for answer in answers)
    assert [answer.image for answer in answers] == [str(path), str(path), "image 3", "image 4", "image 5"]
    (single,) = mixture.predict(np.asarray(image), top=2)
    assert single.tags == answers[0].tags
    np.testing.assert_array_equal(mixture.embed(given)[0], mixture.embed(image)[0])


def test_an_array_that_is_no_picture_is_refused(mixture):
    with pytest.raises(BadImage, match=r"image 1: float32 of shape \(8, 8, 3\): wanted uint8 and \(H, W, 3\)"):
        mixture.predict(np.zeros((8, 8, 3), np.float32))
    with pytest.raises(BadImage, match="image 2: "):
        mixture.embed([Image.new("RGB", (32, 32), "red"), b"no picture"])


def test_a_stored_picture_is_embedded_where_its_post_lies(mixture):
    posts = mixture.posts()
    for post, expert in posts.select("id", "expert").head(4).iter_rows():
        best = mixture.search(image=mixture.picture(post), top=1)[0]
        assert best.score == pytest.approx(1, abs=1e-4)
        assert best.expert == expert


def test_search_takes_one_or_several_of_each(mixture):
    posts, tag = mixture.posts(), mixture.hashtags[0]
    post = posts["id"][0]
    assert post not in [hit.id for hit in mixture.search(post=post, top=5)]
    together = mixture.search(post=[post], tag=[tag], without=mixture.hashtags[1], top=5)
    assert len(together) == 5
    assert together == mixture.search(post=post, tag=tag, without=[mixture.hashtags[1]], top=5)
    with pytest.raises(Unknown, match="no hashtag 'nosuchtag'"):
        mixture.search(tag="nosuchtag")


def test_posts_are_a_frame_by_expert_split_and_hashtag(mixture):
    every = mixture.posts()
    assert every["id"].n_unique() == len(every) > 350
    own = mixture.posts(expert="e001", split="test")
    assert 0 < len(own) < len(every)
    assert set(own["expert"]) == {"e001"}
    assert set(own["split"]) == {"test"}
    tag = mixture.hashtags[0]
    assert all(tag in tags for tags in mixture.posts(tag=tag)["tags"])
    with pytest.raises(BadSetting, match="no split 'tests': wanted one of"):
        mixture.posts(split="tests")
    with pytest.raises(BadSetting, match="no expert 'e9'"):
        mixture.posts(expert="e9")


def test_what_is_no_mixture_is_said(tmp_path, finished_store):
    with pytest.raises(MissingInput, match="no bundle at"):
        hm.open(tmp_path)
    with pytest.raises(BadSetting, match="0 versions of mixture"):
        hm.open(finished_store, version="nosuch")
    with pytest.raises(BadSetting, match="memory_mib 0: wanted at least 1"):
        hm.open(finished_store, memory_mib=0)


def test_the_package_imports_in_no_time():
    """Before anything is opened neither torch nor numpy is loaded."""
    program = "import sys, moe_core; print(*{'torch', 'numpy', 'polars'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("ask", ["predict", "embed"])
def test_a_folder_without_images_is_an_error(mixture, tmp_path, ask):
    (tmp_path / "notes.txt").write_text("no picture by its name")
    with pytest.raises(BadSource, match="holds no image file"):
        getattr(mixture, ask)(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the kernel's own libraries
def test_the_notebook_of_the_docs_runs(finished_store, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("HARDMOE_STUDY", str(finished_store))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)
    assert "2 experts" in text
    assert "(8, 16)" in text, "eight embeddings"
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_each_job_of_the_notebook_takes_at_most_five_lines():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5
    assert all(sum(bool(line.strip()) for line in cell["source"]) <= 5 for cell in cells)
