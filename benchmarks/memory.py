"""Peak memory at ten times the posts against once the posts, each in a fresh process, as a ratio for each part.

Example: python benchmarks/memory.py ingest --posts 5000
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TARGET = 1.10
STUDY = """
import sys
from pathlib import Path
from moe_core.recipes import small
from moe_core.settings import Source
from moe_core.workspace import open_study
from moe_core.engine.build import build_all
from moe_core.stages.graph import GRAPH
posts, root = int(sys.argv[1]), Path(sys.argv[2])
base = small()
study = base.model_copy(update={"source": Source(format="synthetic", posts=posts, shards=1),
                                "trunk": base.trunk.model_copy(update={"epochs": 1.0})})
context = open_study(study, root)
def make(*names):
    build_all(context, names)
"""
# Of each part what is made before, unmeasured, and the program that is. argv[1]: number of posts; argv[2]: a folder.
PARTS = {
    "ingest": ("", STUDY + "make('posts')"),
    "training": (STUDY + "make('posts', 'splits', 'vocabulary')", STUDY + "make('trunk')"),
    "features": (STUDY + "make('posts', 'splits', 'vocabulary', 'trunk')", STUDY + "make('trunk_features')"),
}
PEAK = """
import re
print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""  # of this program alone: getrusage would count what its parent held when it was started


def peak(part: str, posts: int) -> float:
    """MiB."""
    with tempfile.TemporaryDirectory() as folder:
        before, program = PARTS[part]
        here = Path(__file__).parent.parent
        subprocess.run([sys.executable, "-c", before, str(posts), folder], check=True, cwd=here)
        command = [sys.executable, "-c", program + PEAK, str(posts), folder]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=here)
    args = re.search(r"peak (\d+)", done.stdout)
    assert args
    return int(args[1]) / 1024


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all of them where none is named")
    options.add_argument("--posts", type=int, default=5000)
    args = options.parse_args()
    for part in args.parts or PARTS:
        once, ten = peak(part, args.posts), peak(part, 10 * args.posts)
        print(
            f"{part}: {once:.0f} MiB with {args.posts} posts, {ten:.0f} MiB with {10 * args.posts}: "
            f"ratio {ten / once:.3f} (target {TARGET})",
            flush=True,
        )


if __name__ == "__main__":
    main()
