"""Pages of the docs that are generated from the code. Run as a program (`make docs`), it writes them."""

from collections.abc import Callable
from pathlib import Path

import click
from pydantic import BaseModel

from moe_core.data.sources.registry import FORMATS
from moe_core.recipes import RECIPES
from moe_core.settings import Study
from pipelines.cli.main import COMMANDS, main

DOCS = Path(__file__).parents[2] / "docs"


def settings_and_recipes() -> str:
    """docs/reference/settings.md: every setting, then every recipe with what it is for."""
    lines = ["", "## Recipes", "", "`hardmoe init --recipe NAME` writes these settings (`moe_core/recipes.py`).", ""]
    lines += ["| recipe | what it is |", "| --- | --- |"]
    lines += [f"| `{name}` | {' '.join((recipe.__doc__ or '').split())} |" for name, recipe in RECIPES.items()]
    return _settings() + "\n".join(lines) + "\n"


def _settings() -> str:
    """Every table of study.toml with its settings, defaults and descriptions."""
    lines = [
        "# Settings of study.toml",
        "",
        "Every key may be left out; an unknown one is refused. Relative paths begin in the folder of study.toml.",
        "",
    ]
    for name, field in Study.model_fields.items():
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            lines.append(f"- `{name}` (default `{field.default!r}`): {field.description}")
    for name, field in Study.model_fields.items():
        model = field.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            lines += [
                "",
                f"## [{name}]",
                "",
                (field.description or model.__doc__ or "").strip(),
                "",
                "| key | default | what it does |",
            ]
            lines += ["| --- | --- | --- |"]
            for key, setting in model.model_fields.items():
                default = list(setting.default) if isinstance(setting.default, tuple) else setting.default
                lines.append(f"| `{key}` | `{default!r}` | {setting.description} |")
    return "\n".join(lines) + "\n"


def sources() -> str:
    """docs/reference/sources.md: a written page, whose table of formats follows from the code."""
    page = (DOCS / "reference/sources.md").read_text("utf-8")
    before, _, rest = page.partition("| format |")
    return before + _formats() + "\n" + rest.partition("\n\n")[2]


def _formats() -> str:
    """The table of formats."""
    lines = ["| format | `source.uri` | shards | id | image | tags |", "| --- | --- | --- | --- | --- | --- |"]
    for format in FORMATS.values():
        row = (format.what, format.shards, format.id, format.image, format.tags)
        lines.append(f"| `{format.name}` | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


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
        for of_group in (command.commands if isinstance(command, click.Group) else {}).values():
            lines += ["", *_section(f"hardmoe {name} {of_group.name}", of_group)]
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
