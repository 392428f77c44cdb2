"""Many synthetic posts from nothing to `partition` by `hardmoe run`: time of each stage, disk, memory of all processes.

Memory is the proportional share (Pss) summed over the command and what it started, looked at every second. With several
numbers of posts, what the largest process takes is compared with that at the first. The gate is fitted on at most
FITTED posts, so that a fit on more of them is not what is compared.
Example: python benchmarks/million.py --posts 1000000 4000000
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from moe_core.recipes import demo
from moe_core.settings import Source
from moe_core.study_file import dump_study

LINE = re.compile(r"done\s+(\w+)\S*\s+([\d.]+) s")
FITTED = 500_000
TARGET = 1.3  # of the largest process, at four times the posts


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--posts", type=int, nargs="+", default=[1_000_000])
    options.add_argument("--shards", type=int, default=20)
    options.add_argument("--epochs", type=float, default=1.0, help="of the trunk")
    args = options.parse_args()
    largest = [run(posts, args.shards, args.epochs) for posts in args.posts]
    for posts, mib in zip(args.posts[1:], largest[1:], strict=True):
        print(f"{posts:,} posts against {args.posts[0]:,}: {mib / largest[0]:.2f} times (target {TARGET})")


def run(posts: int, shards: int, epochs: float) -> float:
    """MiB of the largest process."""
    with tempfile.TemporaryDirectory() as folder:
        root, base = Path(folder), demo()
        source = Source(format="synthetic", posts=posts, shards=shards)
        trunk = base.trunk.model_copy(update={"epochs": epochs})
        partition = base.partition.model_copy(update={"max_fit_posts": FITTED})
        changed = {"source": source, "trunk": trunk, "partition": partition}
        (root / "study.toml").write_text(dump_study(base.model_copy(update=changed)))
        command = [sys.executable, "-m", "pipelines.cli.main", "run", "--study", str(root / "study.toml")]
        environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")}
        began, peak = time.monotonic(), 0.0
        largest: dict[str, float] = {}  # after the last stage that was done
        with open(root / "args", "w") as file:
            process = subprocess.Popen([*command, "--until", "partition"], stdout=file, env=environment)
            while process.poll() is None:
                shares = [share(pid) for pid in family(process.pid)]
                done = LINE.findall((root / "args").read_text())
                last = done[-1][0] if done else "nothing"
                peak, largest[last] = max(peak, sum(shares)), max(largest.get(last, 0.0), *shares)
                time.sleep(1)
        seconds = time.monotonic() - began
        if process.returncode:
            sys.exit(f"hardmoe run ended with {process.returncode}")
        stages: dict[str, list[float]] = {}
        for name, took in LINE.findall((root / "args").read_text()):
            stages.setdefault(name, []).append(float(took))
        for name, times in stages.items():
            print(f"{name:16} {sum(times):7.1f} s in {len(times)} runs")
        for name, mib in largest.items():
            print(f"after {name:16} the largest process takes at most {mib:,.0f} MiB")
        disk = sum(file.stat().st_blocks * 512 for file in root.rglob("*") if file.is_file())
    print(
        f"{posts:,} posts: {seconds:.0f} s in all; {disk / 2**20:,.0f} MiB on disk; "
        f"{peak:,.0f} MiB at the peak, the largest process {max(largest.values()):,.0f} MiB",
        flush=True,
    )
    return max(largest.values())


def family(pid: int) -> list[int]:
    """The process and all that it started."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def share(pid: int) -> float:
    """MiB."""
    try:
        args = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    found = re.search(r"^Pss:\s+(\d+) kB", args, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


if __name__ == "__main__":
    main()
