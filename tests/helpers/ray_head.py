"""A Ray cluster of one node with the server that takes jobs: on loopback alone, for those who have its token."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from helpers.processes import until
from helpers.ui import free_port


class RayHead:
    """`environment` is what a client needs, `logs` the folder of what Ray writes."""

    def __init__(self, folder, port):
        self.address, self.token, self.folder = f"http://127.0.0.1:{port}", secrets.token_hex(32), folder
        (folder / "token").touch(mode=0o600)
        (folder / "token").write_text(self.token)
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}

    def asked(self, path):
        """What the server answers to a GET."""
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def jobs(self):
        """Records of jobs by their id."""
        return {job["submission_id"]: job for job in self.asked("/api/jobs/")}

    def resources(self):
        """What each job asked for, by its id."""
        actors = self.asked("/api/v0/actors?detail=1&limit=1000")["data"]["result"]["result"]
        name = "_ray_internal_job_actor_"
        return {
            actor["name"].removeprefix(name): actor["required_resources"]
            for actor in actors
            if (actor["name"] or "").startswith(name)
        }


@contextmanager
def ray_head(cpus=2, gpus=0, **variables):
    """Starts a head, whose processes have the variables, and ends all of it. The GPUs are a number alone."""
    folder = Path(tempfile.mkdtemp(prefix="hardmoe-ray-", dir="/tmp"))  # short: the name of a socket has 107 bytes
    ports = {free_port() for _ in range(20)}
    head = RayHead(folder, ports.pop())
    own = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # Ray then takes 127.0.0.1 for the machine's address
    own |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(folder)} | head.environment
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}/ray"]
    command += [f"--dashboard-port={head.address.rpartition(':')[2]}", f"--port={ports.pop()}"]
    command += [f"--dashboard-agent-listen-port={ports.pop()}", f"--ray-client-server-port={ports.pop()}"]
    command += [f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--object-store-memory=100000000"]
    log = folder / "start.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | own | variables, start_new_session=True
        )

    def answers():
        assert process.poll() is None, log.read_text()
        try:
            return head.asked("/api/version")
        except OSError:
            return False

    try:
        until(answers, seconds=180)
        yield head
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)
