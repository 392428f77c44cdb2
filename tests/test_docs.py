import re
from pathlib import Path

from moe_core.data.ingest import REASONS
from moe_core.formats import formats_table
from moe_core.recipes import RECIPES
from moe_core.settings import Study, dump_study, load_study, settings_page

ROOT = Path(__file__).parent.parent


def test_files_that_the_readme_names_exist():
    links = re.findall(r"\]\((?!http)([^)]+)\)", (ROOT / "README.md").read_text("utf-8"))
    assert len(links) >= 6
    assert [link for link in links if not (ROOT / link.partition("#")[0]).exists()] == []


def test_headings_that_pages_link_to_exist():
    pages = [ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\((?!http)([^)]+#[^)]+)\)", page.read_text("utf-8"))
    ]
    assert len(links) >= 2
    for page, link in links:
        file, _, heading = link.partition("#")
        headings = re.findall(r"^#+ (.+)$", ((page.parent / file) if file else page).read_text("utf-8"), re.MULTILINE)
        assert heading in [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings], link


def test_tests_and_files_that_the_pages_on_faults_and_security_name_exist():
    for page in (ROOT / "docs" / "faults.md", ROOT / "SECURITY.md"):
        text = page.read_text("utf-8")
        named = [ROOT / "tests" / name for name in re.findall(r"`(test_\w+\.py)`", text)]
        named += [page.parent / link.partition("#")[0] for link in re.findall(r"\]\((?!http)([^)]+)\)", text)]
        assert len(named) >= 3
        assert [str(path) for path in named if not path.exists()] == []


def test_the_page_of_settings_is_that_of_the_models():
    # written by: python -c "from moe_core.settings import *; print(settings_page(), end='')" > docs/settings.md
    assert (ROOT / "docs" / "settings.md").read_text("utf-8") == settings_page()


def test_the_table_of_formats_is_that_of_their_rows():
    # written by: python -c "from moe_core.formats import *; print(formats_table(), end='')"
    assert any(formats_table() in page.read_text("utf-8") for page in (ROOT / "docs").rglob("*.md"))


def test_every_reason_of_a_reject_is_explained():
    page = (ROOT / "docs" / "data.md").read_text("utf-8")
    assert [reason for reason, why in REASONS.items() if f"| `{reason}` | {why} |" not in page] == []


def test_every_recipe_is_read_back_as_it_was_written(tmp_path):
    for name, recipe in RECIPES.items():
        (tmp_path / "study.toml").write_text(dump_study(recipe()), "utf-8")
        assert load_study(tmp_path / "study.toml") == recipe()
        assert recipe().recipe == name


def test_every_setting_says_what_it_does():
    for model in [Study, *(field.annotation for field in Study.model_fields.values())]:
        for name, field in getattr(model, "model_fields", {}).items():
            assert field.description or hasattr(field.annotation, "model_fields"), name
