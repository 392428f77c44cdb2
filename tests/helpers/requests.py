"""Carries out a request as the daemon does: ticks of the sensor, each run that it asks for in this code location."""

import subprocess
import sys

TICKS = """
import json
import dagster as dg
from assets.study import root, study
from moe_core.store.protocols import open_store
from pipelines.definitions import defs
from pipelines.requests import launch_requested, read_request
if __name__ == "__main__":
    launched, cursor, documents = [], None, open_store(study(), root=root()).documents
    with dg.DagsterInstance.get() as instance:
        for _ in range(60):
            tick = launch_requested(dg.build_sensor_context(instance=instance, cursor=cursor))
            cursor = tick.cursor
            for run in tick.run_requests or ():
                launched.append(run.run_key)
                defs.resolve_job_def(run.job_name).execute_in_process(
                    instance=instance, partition_key=run.partition_key, asset_selection=run.asset_selection,
                    tags=run.tags, raise_on_error=False,
                )
            if read_request(documents) is None:
                break
    still = read_request(documents) is not None
    print(json.dumps({"launched": launched, "end": tick.skip_reason.skip_message, "open": still}))
"""


def carry_out(environment):
    """(keys of the runs that were launched, how the last tick ended)."""
    import json

    done = subprocess.run([sys.executable, "-c", TICKS], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert not document["open"], document
    return document["launched"], document["end"]
