"""`python -m moe_core.joint_helper PARENT PIPE WORK`: takes part in the joint training of work folder WORK.

Started by the process that builds the generation; ends with it.
"""

import json
import sys
from pathlib import Path

from moe_core.errors import HardmoeError
from moe_core.processes import obey_parent
from moe_core.settings import Study
from moe_core.stages.experts.joint import JOB, open_joint, train_part
from moe_core.stages.training.device import device_and_threads
from moe_core.workspace import open_study


def main(work: Path) -> None:
    job = json.loads((work / JOB).read_text("utf-8"))
    context = open_study(Study.model_validate(job["study"]), Path(job["root"]))
    spec = context.spec(job["name"])
    if spec.version != job["version"]:
        raise HardmoeError(f"{work} is for {job['name']} {job['version']}, whose inputs changed since: run again")
    device = device_and_threads(context.study, parallel=True)
    for _ in train_part(context, open_joint(context, spec, work), device):
        pass


if __name__ == "__main__":
    obey_parent(int(sys.argv[1]), int(sys.argv[2]))
    main(Path(sys.argv[3]))
