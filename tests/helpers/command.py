"""`hardmoe` as a user calls it, and what it says of a study."""

import json
import os
import subprocess
import sys

from moe_core.study_file import dump_study


def write(folder, study):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(dump_study(study), "utf-8")
    return folder / "study.toml"


def hardmoe(*arguments, check=True, **variables):
    command = [sys.executable, "-m", "pipelines.cli.main", *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")} | variables
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def status(file):
    return json.loads(hardmoe("status", "--study", file, "--json").stdout)


def states(file):
    return {(row["asset"], row["key"]): row["state"] for row in status(file)["assets"]}
