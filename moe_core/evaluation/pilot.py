"""What a pilot found, in words, as a table and as a plot: the same for the terminal, the report and Dagster's UI."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moe_core.evaluation.measures import MEASURES
from moe_core.evaluation.plots import BLUE, GREEN, GREY, OLIVE, ORANGE, PINK, PURPLE, RED, TEAL, Line, lines
from moe_core.text import format_duration

HEAD = ("K", "over training on", "95 %", "", "gain over the trunk", "device time", "time", "experts on disk")
COLORS = (BLUE, ORANGE, GREEN, RED, PURPLE, TEAL, OLIVE, PINK)
ADVICE = {
    "posts": "more validation posts (data.validation) narrow it most",
    "clusters": "experts of more clusters (pilot.clusters) narrow it most",
    "seeds": "most of it is chance between seeds, which no pilot tells",
    "fit": "the gains at the shares follow no law: a larger pilot.share helps most",
    "form": "most of it is how the law goes on: a larger pilot.share narrows it",
}


def title_of(result: Mapping[str, Any]) -> str:
    """What was measured, and on how many posts."""
    return f"{MEASURES[result['measure']].title}, {result['validation_posts']:,} validation posts"


def choice(result: Mapping[str, Any]) -> str:
    """Which number of experts the pilot chooses, if any, and why."""
    rows = {row["experts"]: row for row in result["rows"]}
    if result["chosen"] is not None:
        row = rows[result["chosen"]]
        text = f"K = {row['experts']}: it would gain {_gain(row)} over training the trunk on for the same budget"
        return text if row["gain_ci95"][0] > 0 else f"{text}. {_doubt(row)}"
    nearest = max(rows.values(), key=lambda row: row["gain_ci95"][0])
    if all(row["gain_ci95"][1] < 0 for row in rows.values()):
        return f"training the trunk on: the interval lies below zero with any K, least with {_named(nearest)}"
    text = f"training the trunk on: no K is estimated to gain. Nearest is {_named(nearest)}"
    return f"{text}, which lies below zero" if nearest["gain_ci95"][1] < 0 else f"{text}. {_doubt(nearest)}"


def _doubt(row: Mapping[str, Any]) -> str:
    """How sure a row is whose interval includes zero, and what would make it surer."""
    largest = max(row["parts"], key=lambda part: row["parts"][part])
    return f"The pilot is not sure: {_of_100(row)} resamples lie above zero; {ADVICE[largest]}"


def _of_100(row: Mapping[str, Any]) -> str:
    return f"{100 * row['above_zero']:.0f} of 100"


def rows_of(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Cells under HEAD: training on, then each number of experts."""
    costs, onward = result["costs"], result["training_on"]
    found = [("training on", "", "", "", f"{_whole(onward):+.3f}", *_cost(costs["training_on"]))]
    for row in result["rows"]:
        low, high = row["gain_ci95"]
        outcome = "gains" if low > 0 else "loses" if high < 0 else f"undecided: {_of_100(row)} above zero"
        figures = (f"{row['gain']:+.3f}", f"{low:+.3f} to {high:+.3f}", outcome, f"{_whole(row):+.3f}")
        found.append((str(row["experts"]), *figures, *_cost(costs["experts"][str(row["experts"])])))
    return found


def notes(result: Mapping[str, Any]) -> Iterator[str]:
    """What the figures rest on, and what was left out."""
    shares, spent = ", ".join(f"{share:.3g}" for share in result["shares"]), result["pilot"]
    yield (
        f"Extrapolated from {shares} of the training, with experts of "
        f"{max(row['clusters'] for row in result['rows'])} clusters of each K at most. The pilot took "
        f"{format_duration(spent['seconds'])} of training, {100 * spent['budgets']:.0f} % of the images of one "
        "mixture's experts"
    )
    for row in result["rows"]:
        parts = ", ".join(f"{name} {half:.3f}" for name, half in row["parts"].items())
        yield f"K = {row['experts']}: half the interval that each doubt alone would give: {parts}"
    if any(row["clusters"] < row["experts"] for row in result["rows"]):
        yield "Gain over the trunk: of training on by all validation posts, of a K by those of the clusters drawn"
    yield from (f"K = {experts} was left out: {why}" for experts, why in result["left_out"].items())
    for name, other in result["others"].items():
        gains = "; ".join(_named(row) for row in other["rows"])
        yield f"By {MEASURES[name].title}: {gains}"


def plot(result: Mapping[str, Any]) -> str:
    """Gain over the trunk by the share of the training: measured points, joined, and both forms of the law beyond."""
    curves, onward = list[Line](), result["training_on"]
    for number, row in enumerate(result["rows"]):
        curves += _lines(result, f"K={row['experts']}", row, COLORS[number % len(COLORS)])
    curves += _lines(result, "training on", onward, GREY)
    marks = [(_place(share), f"{share:.3g}") for share in (*result["shares"], 1.0)]
    return lines(curves, "share of the training", f"gain in {MEASURES[result['measure']].title}", marks)


def _lines(result: Mapping[str, Any], name: str, row: Mapping[str, Any], color: str) -> Iterator[Line]:
    at = [_place(share) for share in result["curve_shares"]]
    for of_form in row["curves"].values():
        yield Line(name, list(zip(at, of_form, strict=True)), color, 1, 0.6)
    measured = [(_place(share), gain) for share, gain in zip(result["shares"], row["gains"], strict=True)]
    yield Line(name, measured, color, 2.6)


def _place(share: float) -> float:
    """On a logarithmic axis."""
    return math.log2(share)


def _whole(row: Mapping[str, Any]) -> float:
    """Gain over the trunk at the end of the curves, the mean of both forms."""
    ends = [of_form[-1] for of_form in row["curves"].values()]
    return float(sum(ends) / len(ends))


def _gain(row: Mapping[str, Any]) -> str:
    low, high = row["gain_ci95"]
    return f"{row['gain']:+.3f} ({low:+.3f} to {high:+.3f})"


def _named(row: Mapping[str, Any]) -> str:
    return f"K = {row['experts']}, {_gain(row)}"


def _cost(cost: Mapping[str, Any]) -> Sequence[str]:
    """Time on one device, time on all that there are, disk."""
    hours = (format_duration(3600 * cost[name]) for name in ("device_hours", "hours"))
    return (*hours, f"{cost['bytes'] / 2**20:,.1f} MiB")
