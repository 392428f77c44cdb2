"""`python -m moe_core.joint_helper WORK PIPE`: takes part in the joint training of work folder WORK.

Started by the process that makes the generation, which listens at the pipe for signs of life; ends with it.
"""

import json
import sys
from pathlib import Path

from moe_core.heartbeat import beat, die_with_parent, end_by_parent_alone
from moe_core.settings import Study
from moe_core.stages.experts.joint import JOB, open_joint, train_part
from moe_core.stages.training.device import device_and_threads
from moe_core.workspace import open_study


def main(work: Path) -> None:
    said = json.loads((work / JOB).read_text("utf-8"))
    die_with_parent(said["parent"])
    context = open_study(Study.model_validate(said["study"]), Path(said["root"]))
    if context.version(said["name"]) != said["version"]:
        raise ValueError(f"{work} is of {said['name']} {said['version']}, the store asks for another now: run again")
    device = device_and_threads(context.study, parallel=True)
    for _ in train_part(context, open_joint(context, said["name"], said["column"]), device):
        pass


if __name__ == "__main__":
    end_by_parent_alone()
    beat(int(sys.argv[2]))
    main(Path(sys.argv[1]))
