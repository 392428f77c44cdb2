"""The comparison table on a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from moe_core.evaluation.comparison import compare
from moe_core.evaluation.hashtag_table import BAND_HEAD, band_lines
from moe_core.evaluation.measures import COSTS, HEADLINE, MEASURES, gain_text, measures_of_gains
from moe_core.text import shown

PROBES = {"neighbors": "nearest neighbors", "linear": "linear probe"}


def print_table(table: dict[str, Any]) -> None:
    """Rows of the comparison, the published one marked; intervals are of 95 %."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
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
        paired = measures_of_gains(table["published_gains"])
        gains = ", ".join(f"{measure.title} {gain_text(pair, measure)}" for measure in paired)
        console.print(f"  over {name:30} {gains}")
    if bands := table.get("bands"):
        _print_bands(console, bands, table["published"])
    agreement = table["embedding_agreement"]
    console.print(
        f"Overlap of a post's hashtags with those of its {agreement['neighbors']} nearest neighbors in the embedding, "
        f"{agreement['n']:,} posts:"
    )
    for row in agreement["rows"]:
        parts = [f"{where} {row[where]:.3f}" for where in ("within", "across") if where in row]
        console.print(f"  {row['name']:18} " + ", ".join(parts) + (" experts" if "across" in row else " the expert"))
    if calibration := table.get("calibration"):
        scaled = f", {calibration['ece_scaled']:.3f} with --calibrated" if calibration["temperature"] else ""
        console.print(f"p of the first hashtag: expected calibration error {calibration['ece']:.3f}{scaled}")
    if transfer := table.get("transfer"):
        _print_transfer(console, transfer)
    for line in compare(table).lines:
        console.print(shown(line, None), markup=False)
    for line in table.get("warnings", []):
        console.print(f"Warning: {shown(line, None)}", markup=False)


def _print_bands(console: Console, bands: dict[str, Any], published: str) -> None:
    """Means over the hashtags of each band."""
    lines = Table(title="Means over the hashtags of a band; 95 % intervals", box=None)
    for head in BAND_HEAD:
        lines.add_column(head, justify="left" if head in ("band", "row") else "right", overflow="fold")
    for cells in band_lines(bands):
        lines.add_row(*cells, style="bold" if cells[4] == published else "")
    console.print(lines)


def _print_transfer(console: Console, transfer: dict[str, Any]) -> None:
    """How well each embedding, frozen, tells the labels that the user names."""
    console.print(
        f"Labels of {shown(transfer['column'])} told by the frozen embedding, {transfer['n']:,} test posts with "
        f"{transfer['labels']:,} labels (the most frequent: {transfer['most_frequent']:.3f}); in parentheses the "
        "mixture's gain:",
        markup=False,
    )
    for row in transfer["rows"]:
        parts = [f"{title} {row[name]:.3f}{_gain(row, name)}" for name, title in PROBES.items()]
        console.print(f"  {row['name']:18} " + ", ".join(parts))


def _gain(row: dict[str, Any], name: str) -> str:
    if f"{name}_gain" not in row:
        return ""
    low, high = row[f"{name}_gain_ci95"]
    return f" ({row[f'{name}_gain']:+.3f}, {low:+.3f} to {high:+.3f})"


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
    room, tables = 0, list[list[tuple[str, list[str]]]]()
    for head, cells in columns:
        wide = max(map(len, (head, *cells))) + 2  # Rich puts a blank before and after each
        if not tables or room < wide:
            tables.append([])
            room = beside
        tables[-1].append((head, cells))
        room -= wide
    return tables
