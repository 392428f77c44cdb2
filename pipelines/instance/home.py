"""The folder of an instance and its dagster.yaml."""

import logging
import os
from contextlib import suppress
from pathlib import Path

from moe_core.errors import BadSetting
from moe_core.store.files import write_text
from moe_core.store.layout import DAGSTER_SETTINGS, Layout
from pipelines.aliases import alias, shorten_temporary_folder

SETTINGS = """# Written by hardmoe; yours to change.
telemetry:
  enabled: false
nux:
  enabled: false  # no invitation to a newsletter
concurrency:
  runs:
    max_concurrent_runs: 8
  pools:
    granularity: run
    default_limit: {workers}
run_monitoring:
  enabled: true
  start_timeout_seconds: 300
  free_slots_after_run_end_seconds: 300
"""
LONGEST_HOME = 450  # bytes: SQLite opens paths of at most 504, of which Dagster adds 53
NO_TELEMETRY = "DAGSTER_DISABLE_TELEMETRY"


def prepare_home(root: Path, workers: int) -> Path:
    """The folder of the instance, created where it is missing; DAGSTER_HOME names it from here on."""
    folder = checked_home(root)
    folder.mkdir(parents=True, exist_ok=True)
    if not has_settings(folder):
        write_text(folder / DAGSTER_SETTINGS, SETTINGS.format(workers=workers))
    shorten_temporary_folder()
    return set_home(folder)


def has_settings(folder: Path) -> bool:
    """Whether the folder is an instance's."""
    return (folder / DAGSTER_SETTINGS).exists()


def checked_home(root: Path) -> Path:
    """The folder of the instance. Raises BadSetting for a new one that is so deep that SQLite opens nothing in it."""
    folder = Layout(root).used_dagster_home.absolute()
    size = len(os.fsencode(os.path.realpath(folder)))
    if size > LONGEST_HOME and not has_settings(folder):
        raise BadSetting(
            f"{folder} has {size} bytes, and SQLite opens files for Dagster in folders of at most {LONGEST_HOME}: "
            "choose a shorter path, or name one in DAGSTER_HOME"
        )
    return folder


def set_home(folder: Path) -> Path:
    """Sets DAGSTER_HOME; for a folder with a "?" to a link, since Dagster would open SQLite's files up to it."""
    folder = alias(folder) if "?" in str(folder) else folder
    os.environ["DAGSTER_HOME"] = str(folder)
    if leaves_telemetry_open(folder):
        os.environ[NO_TELEMETRY] = "by hardmoe"  # read by webserver and daemon
    return folder


def leaves_telemetry_open(folder: Path) -> bool:
    """Whether the user's dagster.yaml does not mention telemetry, which Dagster takes as consent."""
    import yaml

    # where the file is not as it should be, `opened` reports what is wrong with it
    with suppress(OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return "enabled" not in yaml.safe_load((folder / DAGSTER_SETTINGS).read_text("utf-8"))["telemetry"]
    return True


def warn_of_telemetry() -> None:
    """Warns, in the log of a code server that the user started, that its webserver and daemon send telemetry."""
    folder = os.environ.get("DAGSTER_HOME")
    if folder and NO_TELEMETRY not in os.environ and leaves_telemetry_open(Path(folder)):
        logging.getLogger("hardmoe").warning(
            "Dagster sends telemetry: %s/dagster.yaml does not mention it. Add `telemetry: {enabled: false}` there, or "
            "set %s=1",
            folder,
            NO_TELEMETRY,
        )
