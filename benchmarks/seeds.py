"""One study with several seeds: mean, standard deviation and spread of every row, and of the published row's gains.

    python benchmarks/seeds.py --source tinyimagenet.parquet --recipe small --seeds 0 1 2 --root DIR \\
        [--set trunk.epochs=50 ...]

A seed is that of the trunk (and of the wider network), of the experts and other controls, of k-means and of the random
partition. Splits do not turn on it: posts, splits and vocabulary are made by the first study and linked to the others.
Each is made by `hardmoe run` in DIR/seed<N>; stopped, it goes on there. Numbers are kept in DIR/seeds.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from linked import LABELLED, link

from moe_core.data.sources.guessing import absolute, guess_format
from moe_core.evaluation.measures import MEASURES as ALL
from moe_core.recipes import RECIPES
from moe_core.settings import Study
from moe_core.store.files import write_text
from moe_core.study_file import dump_study, load_study
from moe_core.workspace import open_study

MEASURES = {name: measure.title for name, measure in ALL.items() if measure.paired or name == "map"}
SEEDED = ("trunk", "expert_training", "partition")


def study_of(recipe: str, source: str, said: Sequence[str], seed: int) -> Study:
    """The recipe on a source (a path, or "synthetic") with `section.key=value` settings, and one seed for all."""
    settings = RECIPES[recipe]().model_dump(mode="json")
    if source != "synthetic":
        settings["source"] |= {"format": guess_format(source), "uri": absolute(source)}
    for section in SEEDED:
        settings[section]["seed"] = seed
    return with_settings(Study.model_validate(settings | {"name": f"seed{seed}"}), said)


def with_settings(study: Study, said: Sequence[str]) -> Study:
    """The study with `section.key=value` settings. Raises ValueError for what is none."""
    settings = study.model_dump(mode="json")
    for one in said:
        place, found, text = one.partition("=")
        section, _, key = place.partition(".")
        if not found or key not in settings.get(section, {}):
            raise ValueError(f"--set {one}: wanted section.key=value of study.toml, such as trunk.epochs=50")
        settings[section][key] = value_of(text)
    return Study.model_validate(settings)


def value_of(text: str) -> Any:
    """As in study.toml; what is no TOML is a word."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def table_of(study: Study, root: Path, workers: Sequence[str]) -> dict[str, Any]:
    """Of the study at `root`, made by `hardmoe run`. Raises RuntimeError where that fails."""
    file = root / "study.toml"
    if file.exists() and load_study(file) != study:
        raise ValueError(f"{file} is another study: wanted a new --root, or the settings it was begun with")
    write_text(file, dump_study(study))
    command = [sys.executable, "-m", "pipelines.cli.main", "run", "--study", str(file), *workers]
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
    with open(root / "run.log", "a") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        raise RuntimeError(f"hardmoe run ended with {done.returncode}: {root / 'run.log'} says why")
    found: dict[str, Any] = json.loads(open_study(study, root).need("evaluation").file("table.json").read_text())
    return found


def summary(tables: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """ "rows" and "published_less": of each row each measure's mean, standard deviation, spread and values by seed."""
    names = [row["name"] for row in tables[0]["rows"]]
    rows = [{row["name"]: row for row in table["rows"]} for table in tables]
    gains = [table["published_gains"] for table in tables]
    return {
        "rows": {name: {m: _about([one[name][m] for one in rows]) for m in MEASURES} for name in names},
        "published_less": {
            name: {
                m: _about([one[name][f"{m}_gain"] for one in gains if name in one])
                | {"above_zero": sum(one[name][f"{m}_gain_ci95"][0] > 0 for one in gains if name in one)}
                for m in MEASURES
            }
            for name in names
            if any(name in one for one in gains)
        },
    }


def _about(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": round(statistics.fmean(values), 5),
        "deviation": round(statistics.stdev(values), 5) if len(values) > 1 else None,
        "spread": round(max(values) - min(values), 5),
        "values": list(values),
    }


def printed(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Two tables in Markdown, in points: mean, plus or minus the standard deviation, the spread in brackets."""

    def cell(one: Mapping[str, Any], form: str) -> str:
        deviation = "" if one["deviation"] is None else f" ± {100 * one['deviation']:.1f}"
        return f"{100 * one['mean']:{form}}{deviation} ({100 * one['spread']:.1f})"

    head = " | ".join(MEASURES.values())
    lines = [f"| row | {head} |", "| --- " * (len(MEASURES) + 1) + "|"]
    for name, row in found["rows"].items():
        lines.append(f"| `{name}` | " + " | ".join(cell(row[m], ".1f") for m in MEASURES) + " |")
    lines += ["", f"| published less | {head} |", "| --- " * (len(MEASURES) + 1) + "|"]
    for name, row in found["published_less"].items():
        cells = [f"{cell(row[m], '+.1f')}, {row[m]['above_zero']} of {len(row[m]['values'])} above 0" for m in MEASURES]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--source", required=True)
    options.add_argument("--recipe", default="small", choices=sorted(RECIPES))
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--root", type=Path, required=True)
    options.add_argument("--set", dest="said", nargs="+", default=[], metavar="SECTION.KEY=VALUE")
    options.add_argument("--workers", type=int)
    asked = options.parse_args()
    workers = ["--workers", str(asked.workers)] if asked.workers else []
    tables: dict[int, dict[str, Any]] = {}
    first: Path | None = None
    for seed in asked.seeds:
        study, root = study_of(asked.recipe, asked.source, asked.said, seed), asked.root / f"seed{seed}"
        root.mkdir(parents=True, exist_ok=True)
        if first:
            link(first, root, LABELLED)
        tables[seed] = table_of(study, root, workers)
        first = first or root
        about = {"source": asked.source, "recipe": asked.recipe, "set": asked.said, "tables": tables}
        found = summary(list(tables.values()))
        write_text(asked.root / "seeds.json", json.dumps(about | {"summary": found}, indent=1))
        print(
            f"seeds {', '.join(map(str, tables))}: {tables[seed]['n']:,} test posts\n\n{printed(found)}\n", flush=True
        )


if __name__ == "__main__":
    main()
