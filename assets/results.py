import json

import dagster as dg

from assets.materialise import Work, asset_of, cell, materialise
from assets.study import root, study
from moe_core.stages.context import Context


@asset_of("evaluation", group_name="results", kinds={"numpy"})
def evaluation(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """The mixture against its controls on held-out posts, each figure with a 95 % bootstrap interval."""
    result = materialise(context, config)
    table = json.loads(Context(study(), root()).need("evaluation").file("table.json").read_text("utf-8"))
    lines = ["| row | P@1 | 95 % | R@5 |", "| --- | --- | --- | --- |"]
    for row in table["rows"]:
        low, high = row["p_at_1_ci95"]
        name = f"**{cell(row['name'])}**" if row["name"] == table["published"] else cell(row["name"])
        lines.append(f"| {name} | {row['p_at_1']:.3f} | {low:.3f} to {high:.3f} | {row['r_at_5']:.3f} |")
    result.metadata["table"] = dg.MetadataValue.md("\n".join(lines))  # type: ignore[index]
    return result


@asset_of("report", group_name="results", kinds={"html"})
def report(context: dg.AssetExecutionContext, config: Work) -> dg.MaterializeResult:
    """One self-contained HTML page: the table, and what each expert sees."""
    result = materialise(context, config)
    path = Context(study(), root()).need("report").file("report.html")
    result.metadata["page"] = dg.MetadataValue.path(str(path))  # type: ignore[index]
    return result
