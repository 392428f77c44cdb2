"""Dagster's webserver behind a guard: `python -m pipelines.ui.webserver -w workspace.yaml`.

Dagster runs GraphQL mutations that come by GET and checks neither Host nor Origin, so that any web page open in a
browser on this machine could start, stop and delete runs. Here a request must name this server as its host, must not
come from a page of another origin, and changes something only as a POST of JSON, which a browser sends to another
origin only with that origin's consent.
"""

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import click
import uvicorn
from dagster import DagsterInstance, __version__
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._utils.log import configure_loggers
from dagster_webserver.cli import _lifespan
from dagster_webserver.webserver import DagsterWebserver
from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moe_core.service.guard import Origins, is_same_site, values
from pipelines.ui import report_page
from pipelines.ui.commands import checked_host, checked_prefix

POLL_MILLISECONDS = 2000  # between two updates of running assets on an open page: Dagster's own value
STATEMENT_MILLISECONDS, RECYCLE_SECONDS, OVERFLOW = 15000, 3600, 20  # of the database: Dagster's own values
CLOSE_SECONDS = 5  # for open connections, when the server ends
FRAMES = [(b"x-frame-options", b"SAMEORIGIN"), (b"content-security-policy", b"frame-ancestors 'self'")]


class Guard:
    """An ASGI middleware around everything that the server answers: refuses what pages of other origins can send."""

    def __init__(self, app: ASGIApp, port: int, allowed: Iterable[str] = ()) -> None:
        self.app, self.origins = app, Origins(port, allowed, "hardmoe ui --allow-host NAME")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = None if scope["type"] == "lifespan" else self.refusal(scope)

        async def with_frame_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *FRAMES]
            await send(message)

        if refusal and scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: HTTP 403
        else:
            await (refusal or self.app)(scope, receive, with_frame_headers)

    def refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that no page of this server sends; None for one that is to be answered."""
        if found := self.origins.refusal(scope):
            return _refused(*found)
        method = scope.get("method", "GET")
        if method not in ("GET", "HEAD", "OPTIONS", "POST"):
            return _refused(HTTPStatus.METHOD_NOT_ALLOWED, f"{method} is not used here")
        if method == "POST" and not _is_json(scope):
            return _refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a POST must have Content-Type: application/json")
        return None


class Webserver(DagsterWebserver[WorkspaceProcessContext, Any]):
    """Dagster's webserver behind the guard, with GraphQL by GET for queries alone."""

    def __init__(self, workspace: WorkspaceProcessContext, port: int, prefix: str, allowed: Sequence[str]) -> None:
        self.port, self.allowed = port, allowed
        super().__init__(workspace, prefix, POLL_MILLISECONDS)

    def build_middleware(self) -> list[Middleware]:
        return [Middleware(Guard, port=self.port, allowed=self.allowed), *super().build_middleware()]

    def build_routes(self) -> list[BaseRoute]:
        """Ours come first: Dagster's answer every path.

        The start page lists the runs: Dagster's own, a timeline, leaves out those that a command started.
        """
        prefix = self._app_path_prefix
        first = Route(f"{prefix}/", lambda _: RedirectResponse(f"{prefix}/runs"))
        return [first, *report_page.routes(prefix), *super().build_routes()]

    async def graphql_http_endpoint(self, request: Request) -> Response:
        if not is_same_site(request.scope):  # a link to a page of the UI is followed, one to an answer is not
            return _refused(HTTPStatus.FORBIDDEN, "pages of other sites may not use this server")
        if request.method == "POST":
            try:
                body = await request.json()  # kept by the request, whose body Dagster reads again
            except (ValueError, RecursionError):
                body = None
            if not isinstance(body, dict) or not isinstance(body.get("query"), str):
                return _refused(HTTPStatus.BAD_REQUEST, "wanted one GraphQL request: a JSON object with a `query`")
        answer: Response = await super().graphql_http_endpoint(request)
        return answer

    async def execute_graphql_request(
        self, request: Request, query: str, variables: dict[str, Any] | None, operation_name: str | None
    ) -> Any:
        if request.method != "POST" and not _only_reads(query):
            why = "GraphQL by GET is for queries: send what changes something by POST, as application/json"
            return _refused(HTTPStatus.METHOD_NOT_ALLOWED, why)
        return await super().execute_graphql_request(request, query, variables, operation_name)


def _only_reads(query: str) -> bool:
    """Whether a GraphQL document can be read, and every operation in it is a query."""
    try:
        definitions = parse(query).definitions
    except (GraphQLError, RecursionError):
        return False
    operations = (node for node in definitions if isinstance(node, OperationDefinitionNode))
    return all(operation.operation is OperationType.QUERY for operation in operations)


def _is_json(scope: Scope) -> bool:
    """Checks the type itself: browsers send `text/plain; application/json` unasked, and Dagster takes it for JSON."""
    types = values(scope, "content-type")
    return len(types) == 1 and types[0].partition(";")[0].strip().lower() == "application/json"


def _refused(status: HTTPStatus, why: str) -> Response:
    return PlainTextResponse(f"Refused: {why}\n", status, {"X-Content-Type-Options": "nosniff"})


@click.command()
@click.option("--workspace", "-w", type=click.Path(path_type=Path), required=True, help="workspace.yaml.")
@click.option("--port", "-p", default=3000, show_default=True, help="Port on 127.0.0.1.")
@click.option("--path-prefix", default="", help="Path under which a proxy serves it, such as /hardmoe.")
@click.option("--allow-host", multiple=True, help="Also a name of this server: that of a proxy before it.")
def main(workspace: Path, port: int, path_prefix: str, allow_host: tuple[str, ...]) -> None:
    """Dagster's webserver on 127.0.0.1, for the instance of DAGSTER_HOME."""
    allowed, prefix = [checked_host(host) for host in allow_host], checked_prefix(path_prefix)
    configure_loggers()
    with (
        DagsterInstance.get() as instance,
        WorkspaceProcessContext(instance, WorkspaceFileTarget([str(workspace)]), version=__version__) as loaded,
    ):
        instance.optimize_for_webserver(STATEMENT_MILLISECONDS, RECYCLE_SECONDS, OVERFLOW)
        app = Webserver(loaded, port, prefix, allowed).create_asgi_app(lifespan=_lifespan)
        # h11 keeps the target of a request as it came, and refuses a second Host
        uvicorn.run(
            app,
            host="127.0.0.1",
            port=port,
            http="h11",
            log_level="warning",
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )


if __name__ == "__main__":
    main()
