import json
from typing import Any

import dagster as dg

from assets.gains import of_expert
from assets.materialize import Work, asset_of, materialize
from assets.showing import picture, plot_of_bars, table
from assets.study import key_of
from moe_core.engine.context import Context
from moe_core.evaluation.comparison import compare
from moe_core.evaluation.plots import around, intervals
from moe_core.stages.evaluation.score import PAIRED
from moe_core.store.artifact import Artifact


@asset_of("evaluation", group_name="results", kinds={"numpy"})
def evaluation(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """The mixture against its controls on held-out posts, each figure with a 95 % bootstrap interval."""

    def look(_: Context, artifact: Artifact) -> tuple[dict[str, Any], list[dg.AssetCheckResult]]:
        found = json.loads(artifact.file("table.json").read_text("utf-8"))
        for said in found["per_expert"]:
            if said["n"]:
                context.log_event(
                    dg.AssetObservation(key_of("expert"), partition=said["expert"], metadata=of_expert(said))
                )
        return _comparison(found) | _experts(found), []

    return materialize(context, config, look)


def _comparison(found: dict[str, Any]) -> dict[str, Any]:
    """Plot and table of the rows, and the published row's figures as numbers, which Dagster plots over the runs."""
    rows, marked = found["rows"], found["published"]
    measured = [(r["name"], *around(r["p_at_1_ci95"], r["p_at_1"]), r["name"] == marked) for r in rows]
    lines = [
        (
            f"{r['name']} ✓" if r["name"] == marked else r["name"],
            *(f"{value:.3f}" for value in around(r["p_at_1_ci95"], r["p_at_1"])),
            f"{r['r_at_5']:.3f}",
        )
        for r in rows
    ]
    best = next(row for row in rows if row["name"] == marked)
    verdict = compare(found)
    return {
        f"verdict by {verdict.title}": dg.MetadataValue.md("\n".join(f"- {each.text}" for each in verdict.compared)),
        "worth its cost": f"{verdict.answer}: {verdict.why}",
        "warnings": "; ".join(found["warnings"]) or None,
        "P@1 against the controls": picture(intervals(measured, "P@1 with 95 % intervals"), "P@1 with 95 % intervals"),
        "table": table(("row", "95 %: from", "P@1", "to", "R@5"), lines),
        "published less each other row, on the same posts": table(("row", "P@1", "R@5", "R@10"), _gains(found)),
        "published P@1": best["p_at_1"],
        "published R@5": best["r_at_5"],
        "published mAP": best["map"],
        "p at 1": None,
    }


def _gains(found: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            *(
                f"{pair[f'{measure}_gain']:+.3f} ({pair[f'{measure}_gain_ci95'][0]:+.3f} to "
                f"{pair[f'{measure}_gain_ci95'][1]:+.3f})"
                for measure in PAIRED
            ),
        )
        for name, pair in found["published_gains"].items()
    ]


def _experts(found: dict[str, Any]) -> dict[str, Any]:
    seen = [said for said in found["per_expert"] if said["n"]]
    rows = [
        (
            said["expert"],
            f"{said['n']:,}",
            f"{said['trunk_p_at_1']:.3f}",
            f"{said['mixture_p_at_1']:.3f}",
            f"{said['p_at_1_gain']:+.3f}",
            f"{said['p_at_1_gain_ci95'][0]:+.3f} to {said['p_at_1_gain_ci95'][1]:+.3f}",
            ", ".join(tag["tag"] for tag in said["lifted"][:3]),
        )
        for said in seen
    ]
    gains = [(said["expert"], said["p_at_1_gain"]) for said in seen]
    head = ("expert", "posts", "trunk", "mixture", "gain", "95 %", "hashtags lifted most")
    return plot_of_bars(gains, "P@1 gain of each expert over the trunk", "{:+.3f}") | {
        "P@1 of each expert's test posts": table(head, rows)
    }


@asset_of("report", group_name="results", kinds={"html"})
def report(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """One self-contained HTML page: the table, and what each expert sees. `hardmoe report --open` opens it."""
    return materialize(context, config, _page)


def _page(_: Context, artifact: Artifact) -> tuple[dict[str, Any], list[dg.AssetCheckResult]]:
    page = artifact.file("report.html")
    return {
        "open": dg.MetadataValue.url(f"/hardmoe/report/{artifact.version}"),  # pipelines/ui/report_page.py serves it
        "page": dg.MetadataValue.path(str(page)),
    }, []
