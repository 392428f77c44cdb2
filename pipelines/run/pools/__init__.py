"""Where the tasks of `hardmoe run` are carried out: what the scheduler asks of a pool."""

from collections.abc import Collection
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

from moe_core.settings import Study
from pipelines.run.task import Task, TaskResult


class Pool(Protocol):
    """Processes of this machine (local.py), or of a Ray cluster (ray.py).

    Runs at most `capacity` tasks at once; what is submitted beyond that waits.
    """

    tries: int  # of a task whose process died

    @property
    def capacity(self) -> int: ...

    def has_room(self, task: Task, running: Collection[Task]) -> bool:
        """Whether the task would start at once, beside those that run."""
        ...

    def load_ahead(self) -> None:
        """Prepares for the first task while the caller continues."""
        ...

    def submit(self, task: Task, run_id: str, log: Path, study: Study) -> Future[TaskResult]:
        """Starts the task as the Dagster run `run_id`, with its output appended to the file `log`.

        `study` is what the task was planned from: where study.toml says something else by then, nothing runs and the
        result has `inputs_changed`. A process that dies or hangs is a result with `died`, not an exception.
        """
        ...

    def close(self) -> None:
        """Kills what runs and returns when all processes are gone; open futures are canceled or end in an error."""
        ...
