"""Which mixture a command asks: that of a study, or a bundle's folder."""

from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name

import click
from click.core import ParameterSource

from moe_core.errors import BadSetting
from moe_core.serving.folders import bundle_folder, study_at
from moe_core.store.artifact import Artifact
from pipelines.cli.options import STUDY_OPTION

_VERSION = click.option(
    "--version", default=None, help="Of the study's mixture, or its beginning.  [default: the published one]"
)
_BUNDLE = click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="In place of --study: a mixture's folder or manifest.json, also by the beginning of its version "
    "(cats/mixture/1f0c).",
)


def asks_a_mixture(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options --study, --version and --bundle."""
    for option in (_BUNDLE, _VERSION, STUDY_OPTION):
        command = option(command)
    return command


def chosen_mixture(ctx: click.Context, bundle: Path | None, study_file: Path, version: str | None) -> Path | Artifact:
    """What these options name, as `Bundle` takes it. Raises BadSetting for options that exclude one another.

    A bundle's folder is found without what reads a study, which may not be installed.
    """
    if bundle is not None and ctx.get_parameter_source("study_file") == ParameterSource.COMMANDLINE:
        raise BadSetting("--bundle and --study exclude one another: give one")
    if bundle is None and not study_file.is_file():
        resolve_name("moe_core.study_file:load_study")(study_file)  # raises BadSetting, as in every command
    path = bundle or study_file
    if version is None and study_at(path) is None:
        return bundle_folder(path)
    mixture: Path | Artifact = resolve_name("moe_core.serving.publication:bundle_at")(path, version)
    return mixture
