"""How far a stage is: a file that the terminal reads, beside Dagster's event log."""

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from assets.showing import numbers
from assets.study import root
from moe_core.processes import alive, is_ours, this_process
from moe_core.store.files import write_text
from moe_core.store.layout import Layout
from moe_core.store.locks import is_held

OBSERVE_SECONDS = 4.0


def read(file: Path) -> dict[str, Any]:
    """The latest report in a file; empty where there is none, or it is damaged."""
    try:
        report = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def is_written_on(report: Mapping[str, Any], layout: Layout) -> bool:
    """Whether the process that wrote a report lives: one of another machine does while it holds its run's lease."""
    process, run = str(report.get("process", "")), str(report.get("run", ""))
    return alive(process) if is_ours(process) else bool(run and is_held(layout.lease(run)))


class Progress:
    """Passes a stage's reports on: to a file that the terminal reads, and every few seconds to Dagster's event log."""

    def __init__(self, context: dg.AssetExecutionContext, name: str, key: str | None) -> None:
        self.context, self.name, self.key = context, name, key
        self.layout = Layout(root())
        self.file = self.layout.progress(name, key)
        self.observed = time.monotonic()

    def __enter__(self) -> "Progress":
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.report({})
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_anothers():
            self.file.unlink(missing_ok=True)

    def report(self, progress: Mapping[str, Any]) -> None:
        process = {"host": socket.gethostname(), "pid": os.getpid(), "process": this_process()}
        process |= {"run": self.context.run_id, "time": time.time()}
        if "waits_for" in progress:
            self.context.log.info(f"waits for {self.name}, {progress['waits_for']}")
        if "waits" in progress:
            self.context.log.info(f"waits for {progress['waits']}")
        if set(progress) - {"waits_for"} or not self._is_anothers():  # the process at work says how far it is
            write_text(self.file, json.dumps(process | dict(progress)))
        if progress and time.monotonic() - self.observed >= OBSERVE_SECONDS:
            self.observed = time.monotonic()
            self.context.log_event(
                dg.AssetObservation(asset_key=self.context.asset_key, partition=self.key, metadata=numbers(progress))
            )

    def _is_anothers(self) -> bool:
        """Another living process builds the same and writes its progress to the file."""
        report = read(self.file)
        return report.get("process") != this_process() and is_written_on(report, self.layout)
