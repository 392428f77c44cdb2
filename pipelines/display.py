"""What the terminal shows while runs are under way, and the comparison table."""

import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from moe_core.evaluation.page import COLUMNS
from moe_core.stages.context import Context
from moe_core.stages.fitting import seconds_left
from moe_core.text import shown

if TYPE_CHECKING:
    from pipelines.runner import Running, Summary
    from pipelines.workers import Task

LINE_SECONDS = 10.0  # between progress lines where the output is no terminal


class Display:
    """Live lines on a terminal; a line every few seconds elsewhere."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.console = Console(highlight=False, soft_wrap=True)
        self.live = Live(console=self.console, refresh_per_second=4, transient=True)
        self.printed = self.looked = time.monotonic()

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def event(self, kind: str, task: "Task", why: str) -> None:
        if kind in ("done", "failed"):
            colour = "green" if kind == "done" else "red"
            self.console.print(f"[{colour}]{kind:7}[/{colour}] {task.name:24} ", end="")
            self.console.print(shown(why, 4000), markup=False)

    def poll(self, running: "list[Running]", held_up: dict[str, str]) -> None:
        now = time.monotonic()
        if self.console.is_terminal:
            if now - self.looked >= 0.25:
                self.looked = now
                self.live.update("\n".join(self.lines(running, held_up)))
        elif now - self.printed >= LINE_SECONDS:
            self.printed = now
            for line in self.lines(running, held_up):
                self.console.print(line, markup=False)

    def lines(self, running: "list[Running]", held_up: dict[str, str]) -> list[str]:
        """One of each run under way: its step, loss, speed and time left; one of each that waits for others."""
        return [*(self._line(one) for one in running), *(f"waiting {name:24} {why}" for name, why in held_up.items())]

    def _line(self, one: "Running") -> str:
        from pipelines.runner import progress_of

        try:
            said = json.loads(progress_of(self.context, one.task).read_text("utf-8"))
        except (OSError, ValueError):
            said = {}
        parts = [f"running {one.task.name:24} {time.monotonic() - one.started:6.0f} s"]
        if said.get("run") not in (None, one.run_id):
            parts.append(f"waits for another process ({said['pid']})")
        elif "waits_for" in said:
            parts.append(f"waits for another process ({said['waits_for'] or 'unknown'})")
        if said.get("steps"):
            parts.append(f"{100 * said['step'] / said['steps']:3.0f} %  step {said['step']:,}  loss {said['loss']:.3f}")
            parts.append(f"{said['images_per_second']:,.0f} images/s  {as_one_says(seconds_left(said))} left")
        elif "posts" in said:
            parts.append(f"{said['posts']:,} posts")
        elif "experts" in said:
            parts.append(f"{said['experts']} experts")
        return "  ".join(parts)


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
    artefact = None
    with suppress(ValueError):  # its plan was overtaken meanwhile: it belongs to the one before
        artefact = context.find(task.stage, task.key)
    said = artefact.metadata if artefact else {}
    parts = [f"{task.name:24} {kind:7}"]
    if "loss" in said:
        parts.append(f"loss {said['loss']:.3f}")
    if said.get("seconds"):  # not of an expert that was drawn from a generation
        parts.append(f"{as_one_says(said['seconds'])}")
        parts.append(f"{said['training_images'] / said['seconds']:,.0f} images/s")
    return "  ".join(parts)


def as_one_says(seconds: float) -> str:
    """12 s, 3 min, 1 h 20 min."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60} min"


def print_table(table: dict[str, Any]) -> None:
    """Rows of the comparison, the published one marked; intervals are of 95 %."""
    console = Console(highlight=False)
    width = {} if console.is_terminal else {"width": 200}
    console = Console(highlight=False, **width)  # type: ignore[arg-type]
    lines = Table(title=f"{table['n']:,} held-out posts, {table['hashtags']:,} hashtags; 95 % intervals", box=None)
    lines.add_column("")
    for _, title in COLUMNS:
        lines.add_column(title, justify="right")
    for title in ("parameters", "used", "multiply-adds", "images trained on"):
        lines.add_column(title, justify="right")
    for row in table["rows"]:
        cells = []
        for name, _ in COLUMNS:
            low, high = row[f"{name}_ci95"]
            cells.append(
                f"{row[name]:.3f} ({low:.3f}-{high:.3f})" if name in ("p_at_1", "r_at_5") else f"{row[name]:.3f}"
            )
        costs = [f"{row[name]:,}" for name in ("parameters", "parameters_used", "multiply_adds", "training_images")]
        published = row["name"] == table["published"]
        lines.add_row(("* " if published else "  ") + row["name"], *cells, *costs, style="bold" if published else "")
    console.print(lines)
    console.print(f"* the answer of this mixture: {table['published']}, chosen on validation posts")
    console.print("It gains, on the same posts:")
    for name, pair in table["published_against"].items():
        gains = [
            f"{title} {pair[f'{measure}_gain']:+.3f} ({low:+.3f} to {high:+.3f})"
            for measure, title in COLUMNS
            if f"{measure}_gain" in pair
            for low, high in [pair[f"{measure}_gain_ci95"]]
        ]
        console.print(f"  over {name:30} " + ", ".join(gains))
    unity = table["unity"]
    console.print(
        f"Overlap of a post's hashtags with those of its {unity['neighbours']} nearest neighbours in the embedding, "
        f"{unity['n']:,} posts:"
    )
    for row in unity["rows"]:
        parts = [f"{where} {row[where]:.3f}" for where in ("within", "across") if where in row]
        console.print(f"  {row['name']:18} " + ", ".join(parts) + (" experts" if "across" in row else " the expert"))
