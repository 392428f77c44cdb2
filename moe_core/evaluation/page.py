"""The report's page, from templates/report.html.j2. The template escapes text of users (tags, names), and the page
forbids the browser all requests, and all scripts but the one that sorts and filters hashtags, which it knows by a hash.
"""

import hashlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from moe_core.evaluation import pilot as pilots
from moe_core.evaluation.comparison import compare
from moe_core.evaluation.hashtag_table import BAND_MEASURES
from moe_core.evaluation.measures import COSTS, MEASURES, measures_of_gains
from moe_core.evaluation.plots import BLUE, GREY, ORANGE, Line, bars, intervals, lines, share_line, short, sparkline
from moe_core.settings import Study
from moe_core.study_file import dump_study
from moe_core.text import format_duration
from moe_core.text import shown as text_shown

FIGURES = ("cheaper", "same_cost", "ablation")  # roles of the rows over which gains are shown in large
SIZES_OF = 40  # experts at most in the plot of sizes
SMOOTH = 10  # measurements whose mean is a point of a loss curve
HASHTAGS = 2000  # in their table, at most: half a megabyte of the page

SCRIPT = files("moe_core.evaluation").joinpath("templates/hashtags.js").read_text("utf-8")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
SCRIPT_POLICY = f"script-src 'sha256-{b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'"


def render(
    study: Study,
    table: Mapping[str, Any],
    experts: Sequence[Mapping[str, Any]],
    logs: Mapping[str, Sequence[Mapping[str, float]]],
    spending: Sequence[Any],
    pilot: Mapping[str, Any] | None = None,
    **shown: Any,
) -> str:
    """One HTML page with everything in it; it needs no other file and no network. `logs`: of the trunk and experts,
    `pilot`: what one found, where there was one.

    `shown`: posts, reasons, vocabulary, partition, lineage and hashtags, which the template takes as they are.
    """
    losses = {name: smoothed([(line["images_seen"], line["loss"]) for line in log]) for name, log in logs.items()}
    rates = {name: [(line["images_seen"], line["lr"]) for line in log] for name, log in logs.items()}
    sizes = bars([(e["key"], e["size"]) for e in experts], "training posts") if len(experts) <= SIZES_OF else ""
    return _template().render(
        **_of_table(study, table),
        **shown,
        experts=experts,
        pilot=_of_pilot(pilot) if pilot else None,
        loss=Markup(lines(_curves(losses), "images seen", "loss")),
        rate=Markup(lines(_curves(rates), "images seen", "learning rate")),
        sizes=Markup(sizes),
        sparks={e["key"]: Markup(sparkline(losses[e["key"]], f"loss of {e['key']}")) for e in experts},
        smooth=SMOOTH,
        spending=spending,
        seconds=sum(cost.seconds for cost in spending),
        images=sum(cost.training_images for cost in spending),
        settings=dump_study(study),
    )


def render_table(study: Study, table: Mapping[str, Any], since: Sequence[str] = ()) -> str:
    """A page of the table alone, with its comparison in words; `since`: what changed in the study afterwards."""
    shown: dict[str, Any] = {"partition": None, "pilot": None, "spending": (), "since": since, "hashtags": ()}
    return _template().render(**_of_table(study, table), **shown)


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("moe_core.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"shown": text_shown, "duration": format_duration, "signed": signed, "short": short}
    environment.filters["share"] = lambda share: "" if share is None else f"{share:.3f}"
    return environment.get_template("report.html.j2")


def _of_table(study: Study, table: Mapping[str, Any]) -> dict[str, Any]:
    """Values for the part of the page about the table."""
    rows, gains = table["rows"], table["published_gains"]
    measured = [(r["name"], r["p_at_1"], r["p_at_1_ci95"], r["name"] == table["published"]) for r in rows]
    return {
        "study": study,
        "table": table,
        "comparison": compare(table),
        "best": next(row for row in rows if row["name"] == table["published"]),
        "measures": MEASURES.values(),
        "paired": measures_of_gains(gains),
        "bands": table.get("bands"),  # tables of before have none
        "band_measures": [MEASURES[name] for name in BAND_MEASURES],
        "policy": POLICY,
        "script": Markup(SCRIPT),
        "script_policy": SCRIPT_POLICY,
        "costs": COSTS,
        "figures": [(row["name"], gains[row["name"]]) for row in rows if row["role"] in FIGURES],
        "plot": Markup(intervals(measured, "P@1 of each row")),
        **_of_confidence(table),
    }


def _of_pilot(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of a pilot."""
    return {
        "choice": pilots.choice(result),
        "title": pilots.title_of(result),
        "head": pilots.HEAD,
        "rows": pilots.rows_of(result),
        "notes": list(pilots.notes(result)),
        "plot": Markup(pilots.plot(result)),
    }


def _of_confidence(table: Mapping[str, Any]) -> dict[str, Any]:
    """Plots of how far the published answer's probabilities can be trusted; empty for a table without."""
    calibration, thresholds = table.get("calibration"), table.get("thresholds")
    reliability, tradeoff = "", ""
    if calibration:
        curves = [Line("as right as sure", [(0, 0), (1, 1)], GREY, 1.2)]
        for name, color in (("bins", BLUE), ("bins_scaled", ORANGE)):
            points = [(row["confidence"], row["right"]) for row in calibration[name]]
            curves.append(Line("scaled" if name == "bins_scaled" else "as it is", points, color))
        reliability = lines(curves, "probability of the first hashtag", "share of posts that carry it")
    if thresholds:
        rows = [row for row in thresholds["wanted"] if "validation_precision" in row and "precision" in row]
        validation = [(row["validation_recall"], row["validation_precision"]) for row in rows]
        test = [(row["recall"], row["precision"]) for row in rows]
        both = [Line("validation", validation, BLUE), Line("test", test, ORANGE)]
        tradeoff = lines(both, "recall", "precision") if rows else ""
    of_hashtags = thresholds["hashtags"] if thresholds else []
    return {
        "reliability": Markup(reliability),
        "tradeoff": Markup(tradeoff),
        "hashtag_curves": [(row, Markup(_curve_of(row))) for row in of_hashtags],
    }


def _curve_of(row: Mapping[str, Any]) -> str:
    return share_line(row["curve"], f"precision over recall of {text_shown(row['tag'])}") if row["curve"] else ""


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each y becomes the mean of the last SMOOTH ones."""
    values = [y for _, y in points]
    return [(x, sum(values[max(0, n - SMOOTH + 1) : n + 1]) / min(n + 1, SMOOTH)) for n, (x, _) in enumerate(points)]


def signed(value: float) -> str:
    """+0.045 or −0.080."""
    return f"{value:+.3f}".replace("-", "−")


def _curves(points: Mapping[str, Sequence[tuple[float, float]]]) -> list[Line]:
    """Curves of the experts beneath, all in one color, that of the trunk on top."""
    experts = [Line("experts", curve, BLUE, 1.2, 0.55) for name, curve in points.items() if name != "trunk"]
    return [*experts, Line("trunk", points["trunk"], ORANGE, 2.2)]
