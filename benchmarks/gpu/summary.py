"""Prints the table of docs/gpu.md from results.jsonl, read from standard input: what, target, measured.

A part that was cut off, or a machine without a GPU, leaves "not measured". Example:
python3 benchmarks/gpu/summary.py <build/gpu-results/results.jsonl
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Records = Mapping[str, Mapping[str, Any]]  # the newest of each measurement, by "part: what"
BARE = ("bare", "bare, captured", "bare, compiled", "bare, compiled and captured")
NOT_MEASURED, NO_CARD = "not measured", "no card"


def fastest(records: Records, names: Iterable[str]) -> tuple[float, str]:
    """(images/s, name without its network and batch) of the fastest of these that were measured; (0, "") of none."""
    speeds = [(records[name]["images_per_s"], name.rpartition(": ")[2]) for name in names if name in records]
    return max(speeds, default=(0.0, ""))


def trunk_step(records: Records) -> str:
    """The project's loop, captured or not, against the best bare loop."""
    ours, how = fastest(records, [f"b: resnet50: {name}" for name in ("project", "project, captured")])
    bare, bare_how = fastest(records, [f"b: resnet50: {name}" for name in BARE])
    if not ours or not bare:
        return NOT_MEASURED
    return f"{ours / bare:.2f} ({how}, against {bare_how}); {ours:,.0f} images/s"


def tiny_network(records: Records) -> str:
    """The captured step against the loop of before."""
    captured, _ = fastest(records, ["b: tiny32: project, captured"])
    before, _ = fastest(records, ["b: tiny32: before"])
    if not captured or not before:
        return NOT_MEASURED
    return f"{captured / before:.1f}; {captured:,.0f} images/s against {before:,.0f}"


def kmeans(records: Records) -> str:
    """An iteration against reading the data once; the objective against the CPU's."""
    iteration = records.get("c: K=1024: an iteration of the project's fit")
    if not iteration or iteration["posts"] < 10_000_000:
        return NOT_MEASURED
    measured = f"{iteration['times_reading_once']:.1f}, {iteration['ms']:.0f} ms"
    floor = records.get("c: K=1024: floor in ms", {})
    if "float32" in floor:
        measured += f" (reading {floor['read_once']:.1f} ms, its product in float32 {floor['float32']:.0f} ms)"
    compared = [records.get(f"c: K=1024: against {name} on the CPU") for name in ("FAISS", "torch")]
    differences = [f"{100 * record['differs']:.4f} %" for record in compared if record]
    return f"{measured}; objective within {differences[0] if differences else NOT_MEASURED}"


def experts_at_once(records: Records) -> str:
    """The fastest way to train sixteen tiny experts together against one after the other."""
    title = "d: tiny, batch 64: "
    alone = [f"{title}one after the other", f"{title}one after the other, captured"]
    speeds = [fastest(records, [name])[0] for name in alone]
    together, how = fastest(records, [name for name in records if name.startswith(title) and name not in alone])
    if not all(speeds) or not together:
        return NOT_MEASURED
    eager, captured = (together / speed for speed in speeds)
    return f"{eager:.1f} ({how}); {captured:.1f} against one by one with `capture = true`"


def demo(records: Records) -> str:
    """Whether the whole graph ran."""
    run = records.get("f: hardmoe demo")
    if not run:
        return NOT_MEASURED
    return f"runs, {run['seconds']} s" if run["exit_code"] == 0 else f"fails with exit code {run['exit_code']}"


ROWS: list[tuple[str, str, Callable[[Records], str]]] = [
    (
        "trunk step, ResNet-50, 224 px, bfloat16, against the best bare loop",
        "0.95, above 2,800 images/s on an H100",
        trunk_step,
    ),
    ("tiny network at 32 px, captured, against the loop of before", "3", tiny_network),
    (
        "k-means of 10 million x 256, K = 1,024: an iteration against reading the data once",
        "4; objective within 0.1 % of the CPU's",
        kmeans,
    ),
    ("16 small experts at once against one by one", "4", experts_at_once),
    ("`hardmoe demo` with FAISS on the GPU", "runs", demo),
]


def table(lines: Iterable[str]) -> str:
    """The table in Markdown, of lines of results.jsonl; of a measurement that is there twice the newer one counts."""
    records: dict[str, dict[str, Any]] = {}
    machines: dict[str, None] = {}
    for line in lines:
        record = json.loads(line)
        if record["on"].startswith(NO_CARD) or "skipped" in record or "error" in record:
            continue
        records[f"{record['part']}: {record['what']}"] = record
        machines[record["on"]] = None
    head = "; ".join(machines) or NO_CARD
    rows = [f"| {what} | {target} | {measured(records)} |" for what, target, measured in ROWS]
    return "\n".join([head, "", "| what | target | measured |", "| --- | --- | --- |", *rows])


if __name__ == "__main__":
    print(table(sys.stdin))
