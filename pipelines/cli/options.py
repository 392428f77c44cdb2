"""Options of several commands."""

import os
from collections.abc import Callable
from pathlib import Path

import click

from moe_core.store.layout import STUDY, Layout


def study_file_of(ctx: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """The study.toml of what `--study` names: the file, or its folder."""
    return Layout(path).study_file if path and path.is_dir() else path


STUDY_OPTION = click.option(
    "--study",
    "study_file",
    type=click.Path(path_type=Path),
    default=lambda: os.environ.get("HARDMOE_STUDY") or STUDY,
    callback=study_file_of,
    help="Folder of the study, or its study.toml.  [default: $HARDMOE_STUDY, else ./study.toml]",
)
_WORKERS = click.option(
    "--workers", type=int, default=None, help="Runs at once.  [default: one a GPU, else by the cores]"
)
_ENGINE = click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default=None,
    help="Where runs take place: on this machine, or on a Ray cluster.  [default: cluster.engine of study.toml]",
)
_ADDRESS = click.option(
    "--address", default=None, metavar="HOST:PORT", help="Of the Ray cluster.  [default: cluster.address of study.toml]"
)
FORCE = click.option("--force", is_flag=True, help="Rebuild what exists already.")
SET = click.option(
    "--set", "settings", multiple=True, metavar="TABLE.KEY=VALUE", help="Change a setting in study.toml first."
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Show what would run and why; make no changes.")
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")


def runs_on(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that say where runs take place, and how many at once."""
    for option in (_ADDRESS, _ENGINE, _WORKERS):
        command = option(command)
    return command


def plans_and_runs(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of a command that plans some tasks and runs them."""
    for option in (JSON, DRY_RUN, SET, FORCE, runs_on):
        command = option(command)
    return command
