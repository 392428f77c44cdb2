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
    """What hardmoe would compute with here: devices, FAISS, precision, threads. Exit code 1 where something is wrong.

    Example: hardmoe doctor --experts 64
    """
    there, problems = describe(experts)
    if as_json:
        echo_json({"machine": there, "problems": problems})
    else:
        for name, text in there.items():
            echo(f"{name:10} {text}")
        for problem in problems:
            echo(f"Error: {problem}", err=True)
    if problems:
        sys.exit(1)
