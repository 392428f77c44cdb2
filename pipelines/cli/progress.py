"""What the terminal shows while runs are under way, and how they ended."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from assets.progress import read
from moe_core.engine.context import Context
from moe_core.engine.planner import PlannedTask
from moe_core.stages.data.statistics import warnings_of
from moe_core.stages.training.log import seconds_left
from moe_core.text import format_duration, shown
from pipelines.run.forecast import Forecast
from pipelines.run.scheduler import Running
from pipelines.run.task import Summary, Task
from pipelines.terminal import echo

LINE_SECONDS = 10.0  # between progress lines where the output is no terminal


class Display:
    """Live lines on a terminal, a line every few seconds elsewhere. `tasks` are those of the run."""

    def __init__(self, context: Context, tasks: Sequence[PlannedTask], workers: int) -> None:
        self.context = context
        self.forecast = Forecast(context, tasks, workers)
        self.console = Console(highlight=False, soft_wrap=True)
        redirect = sys.stderr.isatty()  # standard error that goes to a file stays there
        self.live = Live(console=self.console, refresh_per_second=4, transient=True, redirect_stderr=redirect)
        self.printed = time.monotonic()

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def event(self, kind: str, name: str, why: str) -> None:
        if kind == "replanned":
            echo(f"Inputs changed ({why}); replanning the remaining tasks", err=True)
            return
        if kind == "warning":
            echo(f"Warning: {shown(why, 4000)}", err=True)
            return
        self.forecast.event(kind, name)
        if name == "vocabulary" and kind in ("done", "fresh") and self.forecast.trains():
            for line in warnings_of(self.context):
                echo(f"Warning: {line}", err=True)  # under Live, too, above what is live
        if kind in ("done", "failed"):
            # in one call: under Live a line that is not ended is overwritten
            colored = Text(f"{kind:7}", "green" if kind == "done" else "red")
            self.console.print(Text.assemble(colored, f" {name:24}  {shown(why, 4000)}"))

    def poll(self, running: list[Running], blocked: dict[str, str]) -> None:
        live, now = self.console.is_terminal, time.monotonic()
        if not live and now - self.printed < LINE_SECONDS:
            return
        self.printed = now
        lines = self.lines(running, blocked, self.console.width if live else 1000)
        text = Text("\n".join(shown(line, None) for line in lines))
        if live:
            self.live.update(text)
        else:
            self.console.print(text)

    def lines(self, running: list[Running], blocked: dict[str, str], width: int) -> list[str]:
        """The share of the run that is done and the time left; then a line for each running task with its step, loss,
        speed and time left, as far as the width allows; then a line for each task that waits for another process."""
        # empty before a run has reported anything
        reports = {run.task.name: read(self.context.store.layout.progress(*run.name)) for run in running}
        under_way = (_line(run, reports[run.task.name], width) for run in running)
        waiting = (f"waiting {name:24} {why}" for name, why in blocked.items())
        return [self.forecast.line(running, reports), *under_way, *waiting]


def _line(run: Running, report: dict[str, Any], width: int) -> str:
    parts = [f"running {run.task.name:24} {time.monotonic() - run.started:6.0f} s"]
    optional = list[str]()  # is left out where the line is too long, the last first
    if report.get("run") not in (None, run.run_id):
        host, run_id = report.get("host", "this machine"), str(report["run"])  # an older hardmoe named no host
        parts.append(f"waits: built on {host} by run {run_id[:8]} (process {report['pid']})")
    elif "waits_for" in report:
        parts.append(f"waits: {report['waits_for']}")
    elif "waits" in report:
        parts.append(f"waits for {report['waits']}")
    if report.get("steps"):
        loss, speed = f"loss {report['loss']:.3f}", f"{report['images_per_second']:,.0f} images/s"
        step = f"step {report['step']:,}"
        optional = [loss, speed, step]
        share = f"{100 * report['step'] / report['steps']:3.0f} %"
        parts += [share, step, loss, speed, f"{format_duration(seconds_left(report))} left"]
    elif "posts" in report:
        parts.append(f"{report['posts']:,}" + (f" of {report['of']:,}" if "of" in report else "") + " posts")
    elif "experts" in report:
        parts.append(f"{report['experts']} experts")
    while optional and len("  ".join(parts)) > width:
        parts.remove(optional.pop())
    return "  ".join(parts)


def result_line(context: Context, task: Task, summary: Summary) -> str:
    """How a requested network ended, its time, loss and speed."""
    if task.name in summary.failed:
        return f"{task.name:24} failed   {shown(summary.failed[task.name], 4000)}"
    kinds = {"made": summary.made, "fresh": summary.fresh, "stopped": summary.stopped}
    kind = next((kind for kind, names in kinds.items() if task.name in names), "not started")
    if kind not in ("made", "fresh"):
        return f"{task.name:24} {kind}"
    artifact = context.find(task.asset, task.key)
    metadata = artifact.metadata if artifact else {}
    parts = [f"{task.name:24} {kind:7}"]
    if "loss" in metadata:
        parts.append(f"loss {metadata['loss']:.3f}")
    if metadata.get("seconds"):  # an expert that was extracted from a generation has none
        parts.append(format_duration(metadata["seconds"]))
        parts.append(f"{metadata['training_images'] / metadata['seconds']:,.0f} images/s")
    return "  ".join(parts)
