"""Experts at once against one after the other, and what a run of a tiny expert costs beside its training.

The first: `hardmoe backfill --all --force` of 8 experts on the cores that this process may use, by --workers 2 with
half the threads each, and by --workers 1 with all of them, in turn; printed is the ratio of the sums of their times.
The second: 16 tiny experts by --workers 2; what both workers took, less the seconds of training, for each expert, from
the start of the command to its end.

Example: python benchmarks/workers.py --repeats 2
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import plain

from moe_core.recipes import demo
from moe_core.settings import Network, Partition, Source, Training
from moe_core.study_file import dump_study, load_study
from moe_core.threads import cores
from moe_core.workspace import open_study

WORKERS = 2
TINY = Training(epochs=1, batch_size=32, flip=False, crop=1)


def prepared(folder: Path, experts: int, posts: int, training: Training, network: Network) -> Path:
    """study.toml of a synthetic study that is made up to its partition."""
    study = demo().model_copy(
        update={
            "source": Source(format="synthetic", posts=posts, shards=1),
            "network": network,
            "trunk": TINY,
            "expert_training": training,
            "partition": Partition(experts=experts, pca=16),
        }
    )
    folder.mkdir()
    (folder / "study.toml").write_text(dump_study(study))
    plain.make(folder / "study.toml", *plain.TO_THE_PARTITION)
    return folder / "study.toml"


def backfill(study: Path, workers: int) -> tuple[float, float]:
    """(seconds of the command, seconds of training in it, of all experts)"""
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
    threads = {"HARDMOE_THREADS": str(max(1, cores() // workers))}
    command = [sys.executable, "-m", "pipelines.cli.main", "backfill", "--all", "--force", "--study", str(study)]
    began = time.monotonic()
    subprocess.run(
        [*command, "--workers", str(workers)], check=True, stdout=subprocess.DEVNULL, env=environment | threads
    )
    took = time.monotonic() - began
    context = open_study(load_study(study), study.parent)
    return took, sum(context.need("expert", key).metadata["seconds"] for key in context.experts)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=2)
    options.add_argument("--epochs", type=float, default=15, help="of the 8 experts")
    options.add_argument("--posts", type=int, default=8_000, help="of the 8 experts, together")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        training = demo().expert_training.model_copy(update={"epochs": args.epochs})
        study = prepared(Path(folder) / "eight", 8, args.posts, training, demo().network)
        took: dict[int, float] = {WORKERS: 0.0, 1: 0.0}
        for _ in range(args.repeats):
            for workers in took:
                seconds, trained = backfill(study, workers)
                took[workers] += seconds
                how = f"8 experts, --workers {workers}, {max(1, cores() // workers)} threads each"
                print(f"{how}: {seconds:.1f} s ({trained:.1f} s training)", flush=True)
        print(f"{WORKERS} at once are {took[1] / took[WORKERS]:.2f} times as fast on {cores()} cores (target 1.25)")
        tiny = prepared(Path(folder) / "sixteen", 16, 2_000, TINY, Network(widths=(4, 8), depths=(1, 1), embedding=16))
        seconds, trained = backfill(tiny, WORKERS)
        beside = (WORKERS * seconds - trained) / 16
        print(f"16 tiny experts, --workers {WORKERS}: {seconds:.1f} s, of both workers {beside:.2f} s an expert beside")
        print(f"training, and {(seconds - trained / WORKERS) / 16:.2f} s of the clock (target 3)")


if __name__ == "__main__":
    main()
