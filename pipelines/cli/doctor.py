"""What this machine has: doctor."""

import sys

import click

from moe_core.machine import describe
from moe_core.settings import Partition
from pipelines.cli.options import JSON
from pipelines.terminal import echo, echo_json


@click.command()
@click.option("--experts", default=Partition().experts, show_default=True, help="K of the study it is for.")
@JSON
def doctor(experts: int, as_json: bool) -> None:
    """Show in ten lines what hardmoe would compute with here, and what is wrong with it, if anything; then exit code 1.

    torch and the driver, GPUs with their free memory, what precision "auto" means, where k-means runs, which FAISS,
    cores and threads, runs at once, and the environment variables that change any of it.

    Example: hardmoe doctor --experts 64
    """
    machine, problems = describe(experts)
    if as_json:
        echo_json({"machine": machine, "problems": problems})
    else:
        for name, text in machine.items():
            echo(f"{name:10} {text}")
        for problem in problems:
            echo(f"Error: {problem}", err=True)
    if problems:
        sys.exit(1)
