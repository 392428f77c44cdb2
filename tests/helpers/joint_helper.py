"""`python -m helpers.joint_helper PARENT PIPE FOLDER`: takes part in the small joint training of joint_work."""

import sys
from pathlib import Path

from helpers.joint_work import work
from moe_core.processes import obey_parent

if __name__ == "__main__":
    obey_parent(int(sys.argv[1]), int(sys.argv[2]))
    work(Path(sys.argv[3]))
