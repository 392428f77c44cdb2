"""Peak memory at ten times the posts against once the posts, each in a fresh process; printed is the ratio.

Example: python benchmarks/memory.py ingest --posts 5000
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TARGET = 1.10
# Each part is a program: argv[1] is the number of posts, argv[2] an empty folder.
PARTS = {
    "ingest": """
import sys
from pathlib import Path
from moe_core.data.drawn import draw_shard
from moe_core.data.ingest import ingest
from moe_core.settings import Data
posts, root = int(sys.argv[1]), Path(sys.argv[2])
done = ingest(root, "s", draw_shard(0, 1, posts, seed=0), Data(image_size=32), lambda _: None, threads=2)
assert done.count.read == posts
"""
}
PEAK = """
import re
print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""  # of this program alone: getrusage would count what its parent held when it was started


def peak(part: str, posts: int) -> float:
    """MiB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", PARTS[part] + PEAK, str(posts), folder]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)
    said = re.search(r"peak (\d+)", done.stdout)
    assert said
    return int(said[1]) / 1024


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("parts", nargs="*", default=list(PARTS), choices=[*PARTS, []])
    options.add_argument("--posts", type=int, default=5000)
    said = options.parse_args()
    for part in said.parts:
        once, ten = peak(part, said.posts), peak(part, 10 * said.posts)
        print(
            f"{part}: {once:.0f} MiB with {said.posts} posts, {ten:.0f} MiB with {10 * said.posts}: "
            f"ratio {ten / once:.3f} (target {TARGET})",
            flush=True,
        )


if __name__ == "__main__":
    main()
