"""Bundles on a machine that has no study: check."""

from pathlib import Path

import click

from moe_core.errors import BadSetting
from moe_core.serving.check import check_bundle
from moe_core.serving.folders import bundle_folder
from moe_core.text import shown
from pipelines.cli.options import JSON
from pipelines.terminal import echo, echo_json

LISTED = 20  # files that no manifest names


@click.group()
def bundle() -> None:
    """Bundles in folders, without the study that they come from."""


@bundle.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--memory", type=int, default=None, help="MiB of experts held at once.  [default: 4096]")
@JSON
def check(folder: Path, memory: int | None, as_json: bool) -> None:
    """Opens a bundle, which checks every file of it, and lets each expert answer on a drawn picture.

    A part that is missing, changed, or of another mixture is an error, with exit code 1.

    Example: hardmoe bundle check cats/mixture/1f0c
    """
    if memory is not None and memory < 1:
        raise BadSetting(f"--memory {memory}: wanted at least 1")
    checked = check_bundle(bundle_folder(folder), memory << 20 if memory else None)
    if as_json:
        echo_json(checked.as_json())
        return
    for part in checked.parts:
        echo(f"{part.bytes / 2**20:10,.2f} MiB  {part.name:10}  {part.version:20}  {part.file}")
    without = f", {len(checked.unpublished)} of them replaced by the trunk" if checked.unpublished else ""
    echo(
        f"{checked.bytes / 2**20:10,.2f} MiB  {checked.experts:,} experts{without}; {checked.hashtags:,} hashtags; "
        f"pictures of {checked.image_size} pixels; {checked.answer}"
    )
    for name in checked.unnamed[:LISTED]:
        echo(f"Not named by the manifest: {shown(name, 400)}")
    if len(checked.unnamed) > LISTED:
        echo(f"Not named by the manifest: {len(checked.unnamed) - LISTED:,} more")
    drawn = checked.drawn
    echo(
        f"Whole: every expert answers; a drawn picture: {drawn['tag']} {drawn['p']:.3f} by {drawn['expert']}; "
        f"{checked.seconds:.1f} s"
    )
