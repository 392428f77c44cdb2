"""The comparison table in plain words: is the mixture better than what costs less or the same, and worth its cost?

Nothing here is measured: each sentence follows from the paired differences of the table and their 95 % intervals.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from moe_core.evaluation.measures import MEASURES

Outcome = Literal["better", "worse", "same", "undecided"]
Worth = Literal["yes", "no", "undecided", "unknown"]

BASELINES = ("floor", "cheaper", "same_cost")  # roles of the rows that cost less than the mixture, or the same
MOST_POSTS = 10_000_000  # a difference that needs more posts to show is none that anybody would see


@dataclass(frozen=True)
class Compared:
    """The published row against a baseline."""

    row: str
    outcome: Outcome
    gain: float
    ci95: tuple[float, float]
    posts_to_decide: int | None  # where undecided: test posts at which a difference of this size would show
    text: str


@dataclass(frozen=True)
class Comparison:
    """The table in words; `lines` are for people."""

    measure: str  # of MEASURES
    value: float  # of the published row
    n: int
    compared: tuple[Compared, ...]
    worth_its_cost: Worth
    why: str

    @property
    def title(self) -> str:
        return MEASURES[self.measure].title

    @property
    def answer(self) -> str:
        return "not known" if self.worth_its_cost == "unknown" else self.worth_its_cost

    @property
    def lines(self) -> list[str]:
        by = f"{self.title} {self.value:.3f} on {self.n:,} test posts; 95 % intervals of the difference"
        compared = [f"  {each.text}" for each in self.compared]
        return [f"Comparison by {by}:", *compared, f"  worth its cost: {self.answer}: {self.why}"]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(table: Mapping[str, Any]) -> Comparison:
    """Compares the published row of a table, as `evaluation` writes it, with each of its baselines."""
    rows = {row["name"]: row for row in table["rows"]}
    published = rows[table["published"]]
    baselines = {name: row for name, row in rows.items() if row["role"] in BASELINES}
    compared = tuple(_compared(row, table["published_gains"][name], table) for name, row in baselines.items())
    worth, why = _worth(compared, baselines, published, table["untrained"])
    return Comparison(table["measure"], published[table["measure"]], _posts(table), compared, worth, why)


def _compared(row: Mapping[str, Any], pair: Mapping[str, Any], table: Mapping[str, Any]) -> Compared:
    measure = MEASURES[table["measure"]]
    published = next(r for r in table["rows"] if r["name"] == table["published"])
    gain, (low, high) = pair[f"{measure.name}_gain"], pair[f"{measure.name}_gain_ci95"]
    name, title = row["name"], row["title"]
    figures = f"{gain:+.3f} ({low:+.3f} to {high:+.3f}), {published[measure.name]:.3f} against {row[measure.name]:.3f}"
    if low > 0 or high < 0:
        outcome: Outcome = "better" if (low > 0) == (measure.sign > 0) else "worse"
        return Compared(name, outcome, gain, (low, high), None, f"{outcome} than {title}: {figures}")
    if low == high == 0:
        return Compared(name, "same", gain, (low, high), None, f"the same as {title}: no test post tells them apart")
    posts = posts_to_decide(gain, low, high, _posts(table))
    more = (
        f"about {posts:,} test posts would decide a difference of this size"
        if posts
        else "the difference is too small for any number of test posts"
    )
    text = f"undecided against {title}: {figures}; the interval includes zero, {more}"
    return Compared(name, "undecided", gain, (low, high), posts, text)


def _posts(table: Mapping[str, Any]) -> int:
    """Test posts that the measure of the table is of."""
    return int(table["n"] if MEASURES[table["measure"]].of_posts else table["map_posts"])


def posts_to_decide(gain: float, low: float, high: float, posts: int) -> int | None:
    """Posts at which an interval narrowed by the root of their number excludes zero, to two digits; None beyond
    MOST_POSTS."""
    half = (high - low) / 2
    if not gain or (wanted := posts * (half / abs(gain)) ** 2) > MOST_POSTS:
        return None
    wanted = max(wanted, posts + 1.0)
    digits = 10 ** max(0, int(math.log10(wanted)) - 1)
    return math.ceil(wanted / digits) * digits


def _worth(
    compared: tuple[Compared, ...],
    baselines: Mapping[str, Mapping[str, Any]],
    published: Mapping[str, Any],
    untrained: Sequence[str],
) -> tuple[Worth, str]:
    """Yes where it beats all that costs less or the same; no where one of them is as good; else undecided.

    `untrained` has the titles of rows of the same cost that the study does not have.
    """

    def titles(rows: Iterable[Compared]) -> str:
        return " and ".join(baselines[each.row]["title"] for each in rows)

    price = _price(baselines, published)
    lost = [each for each in compared if each.outcome in ("worse", "same")]
    if lost:
        do = "does" if len(lost) == 1 else "do"
        return "no", f"{titles(lost)} {do} as well or better for less or the same; {price}"
    if undecided := [each for each in compared if each.outcome == "undecided"]:
        return "undecided", f"no clear gain over {titles(undecided)}; {price}"
    same_cost = [each for each in compared if baselines[each.row]["role"] == "same_cost"]
    if not same_cost:
        why = "better than the trunk, but networks of the same cost were not trained (evaluation.controls = false)"
        return "unknown", f"{why}; {price}"
    also = f"; {' and '.join(untrained)} was not trained" if untrained else ""
    return "yes", f"better than {titles(same_cost)}{also}; {price}"


def _price(rows: Mapping[str, Mapping[str, Any]], published: Mapping[str, Any]) -> str:
    """Cost of the published row as multiples of the trunk's."""
    trunk = rows["trunk"]
    times = {name: published[name] / max(trunk[name], 1) for name in ("multiply_adds", "parameters", "training_images")}
    return (
        f"it takes {times['multiply_adds']:.1f} times the trunk's multiply-adds an image, {times['parameters']:.1f} "
        f"times its parameters, {times['training_images']:.1f} times its training images"
    )
