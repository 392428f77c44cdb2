"""`python -m helpers.gang_rank PARENT PIPE`: a rank that computes nothing, and does what its job says."""

import json
import os
import sys
import time

from moe_core.processes import obey_parent

if __name__ == "__main__":
    obey_parent(int(sys.argv[1]), int(sys.argv[2]))
    job = json.loads(sys.stdin.readline())
    do = job["do"].get(str(job["rank"]), "end")
    seen = {"pid": os.getpid(), "raylet": os.environ.get("RAY_RAYLET_PID")}
    print(json.dumps({**seen, **job}), flush=True)
    if do == "fail":
        sys.exit("the reason")
    while do == "work":
        time.sleep(1)
