"""What Dagster shows of `evaluation` and of `report`."""

import json
from typing import Any

import dagster as dg

from assets.mixture import of_expert
from assets.showing import Shown, cell, cost_so_far, look, picture, plot_of_bars, table
from assets.study import key_of
from moe_core.engine.context import Context
from moe_core.evaluation import pilot
from moe_core.evaluation.comparison import compare
from moe_core.evaluation.hashtag_table import BAND_HEAD, HASHTAGS_FILE, band_lines, gained_and_lost, mistaken_text
from moe_core.evaluation.measures import HEADLINE, MEASURES, gain_text, measures_of_gains
from moe_core.evaluation.plots import intervals
from moe_core.store.artifact import Artifact

MOST = 5  # hashtags that gain, and that lose


def look_evaluation(work: Context, artifact: Artifact, instance: dg.DagsterInstance) -> Shown:
    comparison = json.loads(artifact.file("table.json").read_text("utf-8"))
    for row in comparison["per_expert"]:
        if row["n"]:
            observation = dg.AssetObservation(key_of("expert"), partition=row["expert"], metadata=of_expert(row))
            instance.report_runless_asset_event(observation)
    shown = _comparison(comparison) | _hashtags(comparison, artifact) | _experts(comparison)
    return Shown(shown | cost_so_far(work))


def _comparison(comparison: dict[str, Any]) -> dict[str, Any]:
    """Plot and table of the rows, and the published row's figures as numbers, which Dagster plots over the runs."""
    rows, marked = comparison["rows"], comparison["published"]
    measured = [(r["name"], r["p_at_1"], r["p_at_1_ci95"], r["name"] == marked) for r in rows]
    lines = [
        (
            f"{r['name']} ✓" if r["name"] == marked else r["name"],
            *(f"{value:.3f}" for value in (r["p_at_1_ci95"][0], r["p_at_1"], r["p_at_1_ci95"][1])),
            *(f"{r[measure.name]:.3f}" for measure in HEADLINE[1:]),
        )
        for r in rows
    ]
    head = ("row", "95 %: from", HEADLINE[0].title, "to", *(measure.title for measure in HEADLINE[1:]))
    pairs, paired = comparison["published_gains"].items(), measures_of_gains(comparison["published_gains"])
    over = ("row", *(measure.title for measure in paired))
    gains = [(row, *(gain_text(pair, measure) for measure in paired)) for row, pair in pairs]
    best = next(row for row in rows if row["name"] == marked)
    words = compare(comparison)
    return {
        f"comparison by {words.title}": dg.MetadataValue.md("\n".join(f"- {each.text}" for each in words.compared)),
        "worth its cost": f"{words.answer}: {words.why}",
        "warnings": "; ".join(comparison["warnings"]) or None,
        "P@1 against the controls": picture(intervals(measured, "P@1 with 95 % intervals"), "P@1 with 95 % intervals"),
        "table": table(head, lines),
        "published less each other row, on the same posts": table(over, gains),
        "p at 1": None,
    } | {f"published {measure.title}": best[measure.name] for measure in MEASURES.values()}


def _hashtags(comparison: dict[str, Any], artifact: Artifact) -> dict[str, Any]:
    """Bands of hashtags, and those of them that gain and lose most; nothing of an evaluation without them."""
    if not comparison.get("bands"):
        return {}
    gained, lost = gained_and_lost(artifact, MOST)
    head = ("hashtag", "band", "test posts", "AP", "gain over the trunk", "mistaken for")
    rows = [
        (
            row["tag"],
            row["band"],
            f"{row['test_posts']:,}",
            f"{row['ap']:.3f}",
            f"{row['ap_gain']:+.3f}",
            mistaken_text(row["mistaken_for"][:3]),
        )
        for row in (*gained, *lost[::-1])
    ]
    return {
        "hashtags by band": table(BAND_HEAD, band_lines(comparison["bands"])),
        "hashtags that gain and lose most": table(head, rows) if rows else None,
        "every hashtag": dg.MetadataValue.path(f"{artifact.uri}/{HASHTAGS_FILE}"),
    }


def _experts(comparison: dict[str, Any]) -> dict[str, Any]:
    experts = [expert for expert in comparison["per_expert"] if expert["n"]]
    rows = [
        (
            expert["expert"],
            f"{expert['n']:,}",
            f"{expert['trunk_p_at_1']:.3f}",
            f"{expert['mixture_p_at_1']:.3f}",
            f"{expert['p_at_1_gain']:+.3f}",
            f"{expert['p_at_1_gain_ci95'][0]:+.3f} to {expert['p_at_1_gain_ci95'][1]:+.3f}",
            ", ".join(tag["tag"] for tag in expert["lifted"][:3]),
        )
        for expert in experts
    ]
    gains = [(expert["expert"], expert["p_at_1_gain"]) for expert in experts]
    head = ("expert", "posts", "trunk", "mixture", "gain", "95 %", "hashtags lifted most")
    return plot_of_bars(gains, "P@1 gain of each expert over the trunk", "{:+.3f}") | {
        "P@1 of each expert's test posts": table(head, rows)
    }


def look_pilot(work: Context, artifact: Artifact, instance: dg.DagsterInstance) -> Shown:
    result = json.loads(artifact.file("pilot.json").read_text("utf-8"))
    about = "gain over the trunk by the share of the training"
    return Shown(
        {
            "choice": pilot.choice(result),
            about: picture(pilot.plot(result), about),
            f"gain in {pilot.title_of(result)}": table(pilot.HEAD, pilot.rows_of(result)),
            "notes": dg.MetadataValue.md("\n".join(f"- {cell(note)}" for note in pilot.notes(result))),
            "chosen": None,
        }
        | cost_so_far(work)
    )


def look_report(work: Context, artifact: Artifact, instance: dg.DagsterInstance) -> Shown:
    links = {
        "open": dg.MetadataValue.url(f"/hardmoe/report/{artifact.version}"),  # pipelines/ui/report_page.py serves it
        "page": dg.MetadataValue.path(f"{artifact.uri}/report.html"),
    }
    return Shown(links | look("worst?split=test"))
