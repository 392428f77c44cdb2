import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from helpers.pages import PAGES
from moe_core.data.rejects import REASONS
from moe_core.recipes import RECIPES
from moe_core.serving.publication import Decision
from moe_core.settings import Study
from moe_core.study_file import dump_study, load_study
from pipelines.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CODE = ("moe_core", "assets", "pipelines", "tests", "benchmarks")
PAGES_OF_ALL = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md")),
    *DOCS.rglob("*.md"),
    *(page for folder in CODE for page in (ROOT / folder).rglob("*.md")),
]


def name_of(page):
    return str(page.relative_to(ROOT))


def links_of(page):
    """Targets of the page's links to files and headings of the repository."""
    return re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text("utf-8"))


def anchors_of(page):
    """The names that a site gives to the page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES_OF_ALL, ids=name_of)
def test_links_lead_to_files_and_headings_that_exist(page):
    for link in links_of(page):
        file, _, heading = link.partition("#")
        target = (page.parent / file) if file else page
        assert target.exists(), link
        assert not heading or heading in anchors_of(target), link


@pytest.mark.parametrize("page", PAGES_OF_ALL, ids=name_of)
def test_files_of_the_code_that_pages_name_exist(page):
    text = page.read_text("utf-8")
    named = re.findall(rf"`((?:{'|'.join(CODE)})/[\w./-]+)`", text)
    named += re.findall(r"python (benchmarks/\w+\.py)", text)
    named += [f"tests/{name}" for name in re.findall(r"`(test_\w+\.py)`", text)]
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_pages_that_the_code_names_exist():
    named = {
        (str(file.relative_to(ROOT)), page)
        for folder in CODE
        for file in (ROOT / folder).rglob("*.py")
        for page in re.findall(r"\bdocs/[\w/-]+\.md", file.read_text("utf-8"))
    }
    assert len(named) >= 5
    assert [(file, page) for file, page in named if not (ROOT / page).exists()] == []


@pytest.mark.parametrize("page", PAGES_OF_ALL, ids=name_of)
def test_commands_that_pages_name_exist(page):
    named = re.findall(r"(?:`|^ {4}|bin/)hardmoe (\w+)", page.read_text("utf-8"), re.MULTILINE)
    assert sorted(set(named) - {"COMMAND", *COMMANDS}) == []


def test_messages_that_the_page_on_trouble_explains_are_in_the_code():
    texts = (file.read_text("utf-8") for folder in CODE[:3] for file in (ROOT / folder).rglob("*.py"))
    code = re.sub(r'"\s+f?"', "", "\n".join(texts))  # strings that go on in the next line
    rows = re.findall(r"^\| (`[^|]+`) \|", (DOCS / "how-to/trouble.md").read_text("utf-8"), re.MULTILINE)
    assert len(rows) >= 8
    parts = [part.strip(" `,:'") for row in rows for part in re.split(r"\.\.\.|\bnan\b|\d+|'[^' ]*'|: ", row)]
    assert [part for part in parts if len(part) > 3 and part not in code] == []


def test_every_fault_names_its_test():
    rows = re.findall(r"^\| (?!fault |---)(.+) \| (.+) \| (.+) \|$", (DOCS / "reference/faults.md").read_text(), re.M)
    assert len(rows) >= 30
    assert [fault for fault, _, tests in rows if "test_" not in tests] == []


def test_every_page_of_the_site_is_in_its_menu():
    def files(entry):
        return (
            [entry]
            if isinstance(entry, str)
            else [f for part in entry for f in files(part)]
            if isinstance(entry, list)
            else [f for part in entry.values() for f in files(part)]
        )

    menu = files(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    assert sorted(menu) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_the_readme_is_short_and_names_linux_on_its_first_screen():
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 130
    assert any("Linux" in line for line in lines[:30])


@pytest.mark.parametrize("page", PAGES)
def test_generated_pages_are_those_of_the_code(page):
    assert (DOCS / page).read_text("utf-8") == PAGES[page](), "write it again: .venv/bin/python tests/helpers/pages.py"


def test_every_field_of_a_decision_is_explained():
    page = (DOCS / "reference/json.md").read_text("utf-8").partition("## published.json")[2]
    assert [field.name for field in fields(Decision) if f'"{field.name}"' not in page] == []


def test_every_reason_of_a_reject_is_explained():
    page = (DOCS / "reference/data-formats.md").read_text("utf-8")
    assert [reason for reason, why in REASONS.items() if f"| `{reason}` | {why} |" not in page] == []


@pytest.mark.parametrize("word", ["nought", "anew", "whoever", "lives with", "cannot be had", "artefact"])
def test_pages_are_written_in_the_words_of_the_field(word):
    code = [
        path for folder in ("moe_core", "assets", "pipelines", "benchmarks") for path in (ROOT / folder).rglob("*.*")
    ]
    files = [*PAGES_OF_ALL, *(path for path in code if path.suffix in (".py", ".j2", ".md", ".sh"))]
    assert len(files) > 200
    assert [str(file) for file in files if re.search(word, file.read_text("utf-8"), re.IGNORECASE)] == []


def test_make_lint_builds_the_site_with_a_pinned_builder():
    lint = (ROOT / "Makefile").read_text("utf-8").partition("\nlint:")[2].partition("\n\n")[0]
    assert "mkdocs build --strict" in lint
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert any(name.startswith("mkdocs") for name in extras["dev"])
    assert re.search(r"^mkdocs==", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)


def test_every_recipe_is_read_back_as_it_was_written(tmp_path):
    for name, recipe in RECIPES.items():
        (tmp_path / "study.toml").write_text(dump_study(recipe()), "utf-8")
        assert load_study(tmp_path / "study.toml") == recipe()
        assert recipe().recipe == name


def test_every_setting_says_what_it_does():
    for model in [Study, *(field.annotation for field in Study.model_fields.values())]:
        for name, field in getattr(model, "model_fields", {}).items():
            assert field.description or hasattr(field.annotation, "model_fields"), name


def test_extending_names_files_for_each_of_the_ten_tasks():
    tasks = re.split(r"^## \d+\. ", (DOCS / "extending.md").read_text("utf-8"), flags=re.MULTILINE)[1:]
    assert len(tasks) == 10
    for task in tasks:
        files = re.findall(r"`((?:moe_core|assets|pipelines)/[\w/]+\.py)`", task)
        assert files, task
        assert [file for file in files if not (ROOT / file).exists()] == []
