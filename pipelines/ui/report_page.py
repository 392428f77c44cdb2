"""The study's report, served beside Dagster's UI: its materialization links to it."""

import os
from http import HTTPStatus
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from moe_core.errors import HardmoeError
from moe_core.evaluation.page import POLICY, SCRIPT_POLICY
from moe_core.store.artifact import Artifact
from moe_core.store.protocols import open_store
from moe_core.study_file import load_study

PATH = "/hardmoe/report"
# The page loads nothing and has one script, known by its hash; in the sandbox it has an origin of its own, so that a
# fault in it does not reach the UI.
ALONE = f"{POLICY}; {SCRIPT_POLICY}; sandbox allow-popups allow-scripts"
HEADERS = {"Content-Security-Policy": ALONE, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


def routes(prefix: str) -> list[Route]:
    """Routes to the newest report of the study that HARDMOE_STUDY names, and to each version of it."""
    return [Route(f"{prefix}{PATH}", _report), Route(f"{prefix}{PATH}/{{version}}", _report)]


def _report(request: Request) -> Response:
    """Not `async`: Starlette reads and checks the file in a thread."""
    study, wanted = os.environ.get("HARDMOE_STUDY"), request.path_params.get("version")
    try:
        reports = _reports(Path(study)) if study else []
        matching = [a for a in reports if wanted in (None, a.version)]
        if matching:
            newest = max(matching, key=lambda artifact: artifact.made_at)
            return HTMLResponse(newest.file("report.html").read_bytes(), headers=HEADERS)
    except (HardmoeError, OSError) as error:
        return PlainTextResponse(f"{error}\n", HTTPStatus.INTERNAL_SERVER_ERROR)
    why = "this report is gone, or of another study" if wanted and reports else "the study has no report yet"
    return PlainTextResponse(f"{why}: `hardmoe run` builds one, {PATH} shows the newest\n", HTTPStatus.NOT_FOUND)


def _reports(study_file: Path) -> list[Artifact]:
    return open_store(load_study(study_file), study_file.parent).versions("report", None)
