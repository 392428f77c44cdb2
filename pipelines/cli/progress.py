"""What the terminal shows while runs are under way, and the comparison table."""

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from moe_core.engine.context import Context
from moe_core.evaluation.comparison import compare
from moe_core.evaluation.measures import COSTS, HEADLINE, MEASURES, PAIRED
from moe_core.stages.data.statistics import warnings_of
from moe_core.stages.training.fit import seconds_left
from moe_core.text import format_duration, shown
from pipelines.run.forecast import Forecast
from pipelines.terminal import echo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moe_core.engine.planner import PlannedTask
    from pipelines.run.scheduler import Running, Summary
    from pipelines.run.task import Task

LINE_SECONDS = 10.0  # between progress lines where the output is no terminal


class Display:
    """Live lines on a terminal; a line every few seconds elsewhere. `tasks` are those of the run, for its progress."""

    def __init__(self, context: Context, tasks: "Sequence[PlannedTask]" = (), workers: int = 1) -> None:
        self.context = context
        self.forecast = Forecast(context, tasks, workers) if tasks else None
        self.console = Console(highlight=False, soft_wrap=True)
        # standard error that goes to a file stays there
        own = sys.stderr.isatty()
        self.live = Live(console=self.console, refresh_per_second=4, transient=True, redirect_stderr=own)
        self.printed = self.looked = time.monotonic()

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
        if self.forecast:
            self.forecast.event(kind, name)
        if name == "vocabulary" and kind in ("done", "fresh") and self.forecast and self.forecast.trains():
            for line in warnings_of(self.context):
                echo(f"Warning: {line}", err=True)  # under Live, too, above what is live
        if kind in ("done", "failed"):
            # in one call: under Live a line that is not ended is overwritten
            colored = Text(f"{kind:7}", "green" if kind == "done" else "red")
            self.console.print(Text.assemble(colored, f" {name:24}  {shown(why, 4000)}"))

    def poll(self, running: "list[Running]", held_up: dict[str, str]) -> None:
        now = time.monotonic()
        if self.console.is_terminal:
            if now - self.looked >= 0.25:
                self.looked = now
                self.live.update(
                    Text("\n".join(shown(line, None) for line in self.lines(running, held_up, self.console.width)))
                )
        elif now - self.printed >= LINE_SECONDS:
            self.printed = now
            for line in self.lines(running, held_up):
                self.console.print(shown(line, None), markup=False)

    def lines(self, running: "list[Running]", held_up: dict[str, str], width: int = 1000) -> list[str]:
        """How much of the run is done and how long the rest takes; of each run under way its step, loss, speed and time
        left, as far as the width allows; one of each that waits for others."""
        reports = {one.task.name: self._report(one) for one in running}
        found = [self.forecast.line(running, reports)] if self.forecast else []
        found += [self._line(one, reports[one.task.name], width) for one in running]
        return [*found, *(f"waiting {name:24} {why}" for name, why in held_up.items())]

    def _report(self, one: "Running") -> dict[str, Any]:
        file = self.context.store.layout.progress(one.task.asset, one.task.key)
        try:
            said: dict[str, Any] = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return said

    def _line(self, one: "Running", said: dict[str, Any], width: int) -> str:
        first = f"running {one.task.name:24} {time.monotonic() - one.started:6.0f} s"
        parts, least = list[str](), list[str]()  # those of `least` can be left out, the last one first
        if said.get("run") not in (None, one.run_id):
            parts.append(f"waits for another process ({said['pid']})")
        elif "waits_for" in said:
            parts.append(f"waits for another process ({said['waits_for'] or 'unknown'})")
        elif "waits" in said:
            parts.append(f"waits for {said['waits']}")
        if said.get("steps"):
            least = [f"loss {said['loss']:.3f}", f"{said['images_per_second']:,.0f} images/s", f"step {said['step']:,}"]
            parts.append(f"{100 * said['step'] / said['steps']:3.0f} %")
            parts += [least[2], *least[:2], f"{format_duration(seconds_left(said))} left"]
        elif "posts" in said:
            parts.append(f"{said['posts']:,}" + (f" of {said['of']:,}" if "of" in said else "") + " posts")
        elif "experts" in said:
            parts.append(f"{said['experts']} experts")
        while least and len("  ".join([first, *parts])) > width:
            parts.remove(least.pop())
        return "  ".join([first, *parts])


def results_of(context: Context, tasks: "list[Task]", summary: "Summary") -> list[str]:
    """A line for each network that was asked for: made, fresh, failed or not, its time, loss and speed."""
    return [_result(context, task, summary) for task in tasks]


def _result(context: Context, task: "Task", summary: "Summary") -> str:
    if task.name in summary.failed:
        return f"{task.name:24} failed   {shown(summary.failed[task.name], 4000)}"
    kinds = {"made": summary.made, "fresh": summary.fresh, "stopped": summary.stopped}
    kind = next((kind for kind, names in kinds.items() if task.name in names), "not begun")
    if kind not in ("made", "fresh"):
        return f"{task.name:24} {kind}"
    artifact = context.find(task.asset, task.key)
    said = artifact.metadata if artifact else {}
    parts = [f"{task.name:24} {kind:7}"]
    if "loss" in said:
        parts.append(f"loss {said['loss']:.3f}")
    if said.get("seconds"):  # not of an expert that was drawn from a generation
        parts.append(f"{format_duration(said['seconds'])}")
        parts.append(f"{said['training_images'] / said['seconds']:,.0f} images/s")
    return "  ".join(parts)


def print_table(table: dict[str, Any]) -> None:
    """Rows of the comparison, the published one marked; intervals are of 95 %."""
    console = Console(highlight=False)
    width = {} if console.is_terminal else {"width": 200}
    console = Console(highlight=False, **width)  # type: ignore[arg-type]
    title = f"{table['n']:,} held-out posts, {table['hashtags']:,} hashtags; 95 % intervals"
    for columns in _side_by_side(_columns(table["rows"]), _names(table), console.width):
        lines = Table(title=title, box=None)
        lines.add_column("", overflow="fold")  # in one piece where any column fits beside it
        for head, _ in columns:
            lines.add_column(head, justify="right", no_wrap=True)
        for number, name in enumerate(_names(table)):
            cells = [cells[number] for _, cells in columns]
            lines.add_row(name, *cells, style="bold" if name.startswith("*") else "")
        console.print(lines)
        title = ""
    console.print(f"* the answer of this mixture: {table['published']}, chosen on validation posts")
    if any(row["name"] == "most_frequent" for row in table["rows"]):
        console.print("most_frequent: every image is answered with the most frequent training hashtags")
    console.print("It gains, on the same posts:")
    for name, pair in table["published_gains"].items():
        gains = [
            f"{measure.title} {pair[f'{measure.name}_gain']:+.3f} ({low:+.3f} to {high:+.3f})"
            for measure in PAIRED
            for low, high in [pair[f"{measure.name}_gain_ci95"]]
        ]
        console.print(f"  over {name:30} " + ", ".join(gains))
    agreement = table["embedding_agreement"]
    console.print(
        f"Overlap of a post's hashtags with those of its {agreement['neighbors']} nearest neighbors in the embedding, "
        f"{agreement['n']:,} posts:"
    )
    for row in agreement["rows"]:
        parts = [f"{where} {row[where]:.3f}" for where in ("within", "across") if where in row]
        console.print(f"  {row['name']:18} " + ", ".join(parts) + (" experts" if "across" in row else " the expert"))
    for line in compare(table).lines:
        console.print(shown(line, None), markup=False)
    for line in table.get("warnings", []):
        console.print(f"Warning: {shown(line, None)}", markup=False)


def _names(table: dict[str, Any]) -> list[str]:
    return [("* " if row["name"] == table["published"] else "  ") + row["name"] for row in table["rows"]]


def _columns(rows: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """(head, cell of each row) of the measures and costs."""
    columns = []
    for measure in MEASURES.values():
        cells = [f"{row[measure.name]:.3f}" for row in rows]
        if measure in HEADLINE:
            around = [row[f"{measure.name}_ci95"] for row in rows]
            cells = [f"{cell} ({low:.3f}-{high:.3f})" for cell, (low, high) in zip(cells, around, strict=True)]
        columns.append((measure.title, cells))
    return columns + [(cost.title, [f"{row[cost.name]:,}" for row in rows]) for cost in COSTS]


def _side_by_side(
    columns: list[tuple[str, list[str]]], names: list[str], width: int
) -> list[list[tuple[str, list[str]]]]:
    """The columns in as few tables as the width allows, each with the names of the rows before it."""
    beside = width - max(map(len, names)) - 2
    room, found = 0, list[list[tuple[str, list[str]]]]()
    for head, cells in columns:
        wide = max(map(len, (head, *cells))) + 2  # Rich puts a blank before and after each
        if not found or room < wide:
            found.append([])
            room = beside
        found[-1].append((head, cells))
        room -= wide
    return found
