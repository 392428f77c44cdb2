"""Pages of the docs that are generated from the code. Run as a program (`make docs`), it writes them."""

from collections.abc import Callable
from pathlib import Path

import click

from moe_core.data.sources.registry import formats_table
from moe_core.recipes import RECIPES
from moe_core.settings import settings_page
from pipelines.cli.main import COMMANDS, main

DOCS = Path(__file__).parents[2] / "docs"


def settings_and_recipes() -> str:
    """docs/reference/settings.md: every setting, then every recipe with what it is for."""
    lines = ["", "## Recipes", "", "`hardmoe init --recipe NAME` writes these settings (`moe_core/recipes.py`).", ""]
    lines += ["| recipe | what it is |", "| --- | --- |"]
    lines += [f"| `{name}` | {' '.join((recipe.__doc__ or '').split())} |" for name, recipe in RECIPES.items()]
    return settings_page() + "\n".join(lines) + "\n"


def sources() -> str:
    """docs/reference/sources.md: a written page, whose table of formats follows from the code."""
    page = (DOCS / "reference/sources.md").read_text("utf-8")
    before, _, rest = page.partition("| format |")
    return before + formats_table() + "\n" + rest.partition("\n\n")[2]


def commands() -> str:
    """docs/reference/commands.md: the text of --help of every command, in the order of their names."""
    lines = [
        "# Commands",
        "",
        "What `hardmoe --help` and `hardmoe COMMAND --help` print.",
        "",
        *_section("hardmoe", main),
    ]
    for name in sorted(COMMANDS):
        command = main.get_command(click.Context(main), name)
        assert command
        lines += ["", *_section(f"hardmoe {name}", command)]
    return "\n".join(lines) + "\n"


def _section(name: str, command: click.Command) -> list[str]:
    context = click.Context(command, info_name=name, terminal_width=100, help_option_names=["-h", "--help"])
    return [f"## {name}", "", "```text", *(line.rstrip() for line in command.get_help(context).splitlines()), "```"]


PAGES: dict[str, Callable[[], str]] = {
    "reference/settings.md": settings_and_recipes,
    "reference/commands.md": commands,
    "reference/sources.md": sources,
}

if __name__ == "__main__":
    for page, text in PAGES.items():
        (DOCS / page).write_text(text(), "utf-8")
