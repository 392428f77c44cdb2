"""The comparison table in plain words: is the mixture better than what costs less or the same, and worth its cost?

Nothing here is measured: each sentence follows from the paired differences of the table and their 95 % intervals.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from moe_core.advice import TITLES

Outcome = Literal["better", "worse", "same", "undecided"]
Worth = Literal["yes", "no", "undecided", "unknown"]

BASELINES = {
    "most_frequent": "answering with the most frequent hashtags",
    "trunk": "the trunk",
    "trunk_same_budget": "the trunk trained for the same budget",
    "dense_same_cost": "the dense network of the same cost",
}
AS_DEAR = ("trunk_same_budget", "dense_same_cost")  # what the same training, or the same cost an image, buys otherwise
MOST_POSTS = 10_000_000  # a difference that needs more posts to show is none that anybody would see


@dataclass(frozen=True)
class Compared:
    """The published row against one other."""

    row: str
    outcome: Outcome
    gain: float
    ci95: tuple[float, float]
    posts_to_decide: int | None  # where undecided: test posts at which a difference of this size would show
    text: str


@dataclass(frozen=True)
class Verdict:
    """What the table says; `lines` are for people."""

    measure: str  # of TITLES
    value: float  # of the published row
    n: int
    compared: tuple[Compared, ...]
    worth_its_cost: Worth
    why: str

    @property
    def title(self) -> str:
        return TITLES[self.measure]

    @property
    def answer(self) -> str:
        return "not known" if self.worth_its_cost == "unknown" else self.worth_its_cost

    @property
    def lines(self) -> list[str]:
        by = f"{self.title} {self.value:.3f} on {self.n:,} test posts; 95 % intervals of the difference"
        compared = [f"  {each.text}" for each in self.compared]
        return [f"Verdict by {by}:", *compared, f"  worth its cost: {self.answer}: {self.why}"]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(table: Mapping[str, Any]) -> Verdict:
    """Of a table as `evaluation` writes it; rows and measures that an older one lacks are left out."""
    measure = str(table.get("measure", "p_at_1"))
    rows = {row["name"]: row for row in table["rows"]}
    published = rows[table["published"]]
    compared = tuple(
        _compared(name, title, measure, table, rows)
        for name, title in BASELINES.items()
        if name in table["published_gains"] and name in rows
    )
    worth, why = _worth(compared, rows, published)
    return Verdict(measure, published[measure], table["n"], compared, worth, why)


def _compared(
    name: str, title: str, measure: str, table: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]
) -> Compared:
    pair = table["published_gains"][name]
    gain, (low, high) = pair[f"{measure}_gain"], pair[f"{measure}_gain_ci95"]
    figures = f"{gain:+.3f} ({low:+.3f} to {high:+.3f}), {rows[table['published']][measure]:.3f} against "
    figures += f"{rows[name][measure]:.3f}"
    if low > 0 or high < 0:
        outcome: Outcome = "better" if low > 0 else "worse"
        return Compared(name, outcome, gain, (low, high), None, f"{outcome} than {title}: {figures}")
    if low == high == 0:
        return Compared(name, "same", gain, (low, high), None, f"the same as {title}: no test post tells them apart")
    posts = posts_to_decide(gain, low, high, table["n"])
    more = (
        f"about {posts:,} test posts would decide a difference of this size"
        if posts
        else "the difference is too small for any number of test posts"
    )
    text = f"undecided against {title}: {figures}; the interval includes zero, {more}"
    return Compared(name, "undecided", gain, (low, high), posts, text)


def posts_to_decide(gain: float, low: float, high: float, posts: int) -> int | None:
    """Posts at which an interval narrowed by the root of their number leaves out zero, to two digits; None beyond
    MOST_POSTS."""
    half = (high - low) / 2
    if not gain or (wanted := posts * (half / abs(gain)) ** 2) > MOST_POSTS:
        return None
    wanted = max(wanted, posts + 1.0)
    digits = 10 ** max(0, int(math.log10(wanted)) - 1)
    return math.ceil(wanted / digits) * digits


def _worth(
    compared: tuple[Compared, ...], rows: Mapping[str, Mapping[str, Any]], published: Mapping[str, Any]
) -> tuple[Worth, str]:
    """Yes where it beats all that costs less or the same; no where one of them is as good; else undecided."""
    price = _price(rows, published)
    lost = [each for each in compared if each.outcome in ("worse", "same")]
    if lost:
        names = " and ".join(BASELINES[each.row] for each in lost)
        return "no", f"{names} {'does' if len(lost) == 1 else 'do'} as well or better for less or the same; {price}"
    if open_ := [each for each in compared if each.outcome == "undecided"]:
        return "undecided", f"no clear gain over {' and '.join(BASELINES[each.row] for each in open_)}; {price}"
    missing = [name for name in AS_DEAR if name not in rows]
    if len(missing) == len(AS_DEAR):
        why = "better than the trunk, but networks of the same cost were not trained (evaluation.controls = false)"
        return "unknown", f"{why}; {price}"
    beaten = " and ".join(BASELINES[name] for name in AS_DEAR if name in rows)
    also = f"; {' and '.join(BASELINES[name] for name in missing)} was not trained" if missing else ""
    return "yes", f"better than {beaten}{also}; {price}"


def _price(rows: Mapping[str, Mapping[str, Any]], published: Mapping[str, Any]) -> str:
    """How many times the trunk's multiply-adds, parameters and training the published row takes."""
    trunk = rows["trunk"]
    times = {name: published[name] / max(trunk[name], 1) for name in ("multiply_adds", "parameters", "training_images")}
    return (
        f"it takes {times['multiply_adds']:.1f} times the trunk's multiply-adds an image, {times['parameters']:.1f} "
        f"times its parameters, {times['training_images']:.1f} times its training images"
    )
