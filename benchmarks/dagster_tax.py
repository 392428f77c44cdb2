"""What Dagster costs: the graph by `hardmoe run` against the same stages called in order by a plain script.

Both do the same work on one worker, each in a fresh process and a fresh folder, in turn; printed is the ratio of the
medians. A run costs the same whatever it does, so the ratio falls with --epochs.
Example: python benchmarks/dagster_tax.py --repeats 2
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import plain

from moe_core.recipes import demo
from moe_core.settings import Source
from moe_core.study_file import dump_study


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeats", type=int, default=1)
    options.add_argument("--epochs", type=float, default=9.0, help="of the trunk; experts train a third of it")
    args = options.parse_args()
    seconds: dict[str, list[float]] = {"plain": [], "dagster": []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(args.repeats):
            for kind in seconds:
                study = Path(folder) / f"{kind}{repeat}" / "study.toml"
                study.parent.mkdir()
                base = demo()
                study.write_text(
                    dump_study(
                        base.model_copy(
                            update={
                                "source": Source(format="synthetic", posts=20_000, shards=2),
                                "trunk": base.trunk.model_copy(update={"epochs": args.epochs}),
                                "expert_training": base.expert_training.model_copy(update={"epochs": args.epochs / 3}),
                            }
                        )
                    )
                )
                run = [sys.executable, "-m", "pipelines.cli.main", "run", "--study", str(study), "--workers", "1"]
                command = plain.command(study) if kind == "plain" else run
                began = time.monotonic()
                threads = str(len(os.sched_getaffinity(0)))
                environment = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME"}
                subprocess.run(
                    command, check=True, stdout=subprocess.DEVNULL, env=environment | {"HARDMOE_THREADS": threads}
                )
                seconds[kind].append(time.monotonic() - began)
                print(f"{kind:8} {seconds[kind][-1]:7.1f} s", flush=True)
    script, dagster = (statistics.median(times) for times in seconds.values())
    print(
        f"Dagster's tax: {dagster / script:.3f} (hardmoe run {dagster:.1f} s, plain script {script:.1f} s; target 1.15)"
    )


if __name__ == "__main__":
    main()
