"""Machines made of name spaces, each with its own process ids, host name and mounts, on the folders of this one."""

import os
import subprocess
import sys
from functools import cache

import pytest

UNSHARE = ["unshare", "--pid", "--uts", "--mount", "--fork", "--kill-child", "--mount-proc"]
NAMED = ["sh", "-c", 'hostname "$0" && exec "$@"']  # the command is process 1 of its machine


@cache
def why_not():
    """Why there can be no such machines here; "" where there can."""
    try:
        done = subprocess.run([*UNSHARE, *NAMED, "gpu01", "true"], capture_output=True, text=True)
    except FileNotFoundError:
        return "no unshare(1) here"
    return done.stderr.strip()


def machine(name, *command, **variables):
    """Starts a Python program on a machine of that name."""
    if why_not():
        pytest.skip(f"no name spaces here: {why_not()}")
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")} | variables
    command = [*UNSHARE, *NAMED, name, sys.executable, *map(str, command)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, text=True, env=environment, start_new_session=True)


def hardmoe_on(name, *arguments, **variables):
    """Starts `hardmoe` on a machine of that name."""
    return machine(name, "-m", "pipelines.cli.main", *arguments, **variables)


def lose(process):
    """The machine is gone, with all its processes at once: its process 1 dies with unshare(1)."""
    process.kill()
    process.communicate()
