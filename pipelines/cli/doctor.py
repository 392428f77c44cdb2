"""What this machine has: doctor."""

import sys
from pathlib import Path

import click

from moe_core.machine import describe, store_of
from moe_core.settings import Partition
from moe_core.study_file import load_study
from pipelines.cli.options import JSON, study_file_of
from pipelines.terminal import echo, echo_json


@click.command()
@click.option("--experts", type=int, default=None, help="K of the study it is for.  [default: its own, else 8]")
@click.option(
    "--study",
    "study_file",
    type=click.Path(path_type=Path),
    default=None,
    callback=study_file_of,
    help="Folder of a study, or its study.toml: its store is looked at, too.",
)
@JSON
def doctor(experts: int | None, study_file: Path | None, as_json: bool) -> None:
    """Show in ten lines what hardmoe would compute with here, and what is wrong with it, if anything; then exit code 1.

    torch and the driver, GPUs with their free memory, what precision "auto" means, where k-means runs, which FAISS,
    cores and threads, runs at once, and the environment variables that change any of it.

    With --study also where its artifacts lie, and whether a bucket answers and keeps its word.

    Example: hardmoe doctor --study cats
    """
    study = load_study(study_file) if study_file else None
    machine, problems = describe(experts or (study.partition if study else Partition()).experts)
    if study is not None and study_file is not None:
        machine["store"], wrong = store_of(study, study_file.absolute().parent)
        problems += wrong
    if as_json:
        echo_json({"machine": machine, "problems": problems})
    else:
        for name, text in machine.items():
            echo(f"{name:10} {text}")
        for problem in problems:
            echo(f"Error: {problem}", err=True)
    if problems:
        sys.exit(1)
