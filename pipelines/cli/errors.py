"""How a command fails: one line for what a user can mend, a traceback for a bug, Ctrl-C in order."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from moe_core.errors import HardmoeError, device_error
from moe_core.text import shown
from pipelines.run.interrupts import SIGNALS, handled
from pipelines.terminal import echo

BUG = "This is a bug of hardmoe, not a mistake of yours: please report it, with the lines above, where you got hardmoe"
OURS = ("moe_core", "assets", "pipelines")  # where one of these is missing, that is a bug
OF_SERVE = ("fastapi", "starlette", "uvicorn", "httptools", "prometheus_client", "python_multipart")
LONGEST = 4000  # characters of one message: it may quote a user's file


class OneLineErrors(click.Group):
    """Prints a HardmoeError or an error of the system (disk full, no permission) in one line, with exit code 1.

    Any other exception is a bug and keeps its traceback, as all do where HARDMOE_TRACE is set.
    """

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with _usage_errors_escaped():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with handled(_interrupt_once, even_ignored=False), _usage_errors_escaped():
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:
                echo("Interrupted. Run the same command to resume.", err=True)
                ctx.exit(130)
            except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
                raise  # click's own; it ends without a word where the reader of our output has gone
            except Exception as error:
                message = _message(error)
                if message is None:
                    error.add_note(BUG)
                if message is None or os.environ.get("HARDMOE_TRACE"):
                    raise
                raise click.ClickException(shown(message, LONGEST)) from None


def _message(error: Exception) -> str | None:
    """One line for what a user can mend; None for a bug."""
    if isinstance(error, FileExistsError) and error.filename:
        return f"{error.filename} is not a folder, and one is wanted there: move it away"
    if isinstance(error, ModuleNotFoundError) and (missing := (error.name or "").partition(".")[0]) not in OURS:
        has_it = "'hardmoe[serve]' has" if missing in OF_SERVE else "'hardmoe[cpu]', or [gpu], has all of"
        return f"this needs {error.name}, which is not installed: pip install {has_it} it"
    error = device_error(error) or error
    if isinstance(error, HardmoeError | OSError):  # OSError: a disk is full, a permission is missing ...
        return " ".join(str(error).split())
    if type(error).__module__.startswith("sqlalchemy"):
        home = os.environ.get("DAGSTER_HOME", "dagster")
        return (
            f"Dagster's database in {shown(home, 300)}: {shown(str(error).splitlines()[0], LONGEST)}: does another "
            "program hold it, or is its disk full? Then try again"
        )
    return None


@contextmanager
def _usage_errors_escaped() -> Iterator[None]:
    """An error of click's quotes arguments, which a pattern of the shell may have built from file names."""
    try:
        yield
    except click.ClickException as error:
        error.message = shown(error.message, LONGEST)  # type: ignore[misc]
        raise


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """The first Ctrl-C or SIGTERM ends the command in order; later ones are ignored, so that it can print a summary."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt
