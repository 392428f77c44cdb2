"""Registry of what the comparison table measures of each row, and of what a row costs.

The table, the report, the terminal, Dagster and publication choose their columns here. A measure is added by a name
here and by the values that `metrics.per_post` gives under that name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """A column of the table."""

    name: str  # in table.json
    title: str
    sign: int = 1  # 1: higher is better; -1: lower
    of_posts: bool = True  # a mean over posts; False: of all the answers together
    paired: bool = False  # the published row is compared with each other by it, post by post; mAP by resamples
    headline: bool = False  # shown with its interval where there is room for few


@dataclass(frozen=True)
class Cost:
    """A column of costs."""

    name: str
    title: str
    per_image: bool = False


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("p_at_1", "P@1", paired=True, headline=True),
        Measure("p_at_5", "P@5"),
        Measure("r_at_5", "R@5", paired=True, headline=True),
        Measure("r_at_10", "R@10", paired=True),
        Measure("cross_entropy", "cross-entropy", sign=-1),
        Measure("map", "mAP", of_posts=False),
    )
}
PAIRED = [measure for measure in MEASURES.values() if measure.paired]
HEADLINE = [measure for measure in MEASURES.values() if measure.headline]

COSTS = (
    Cost("parameters", "parameters"),
    Cost("parameters_used", "used", per_image=True),
    Cost("multiply_adds", "multiply-adds", per_image=True),
    Cost("training_images", "images trained on"),
)


def measures_of_gains(gains: Mapping[str, Mapping[str, Any]]) -> list[Measure]:
    """Measures of which `published_gains` has a difference to every row: older tables have none of mAP."""
    known = {name for pair in gains.values() for name in pair}
    return [measure for measure in MEASURES.values() if measure.paired or f"{measure.name}_gain" in known]


def gain_text(pair: Mapping[str, Any], measure: Measure) -> str:
    """The published row less another by a measure, with its 95 % interval."""
    low, high = pair[f"{measure.name}_gain_ci95"]
    return f"{pair[f'{measure.name}_gain']:+.3f} ({low:+.3f} to {high:+.3f})"
