"""What every request passes first: the guard; and what is counted of each."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moe_core.service.answers import Json
from moe_core.service.guard import Origins, Token
from moe_core.service.metrics import Metrics

PUBLIC = ("/healthz", "/")
PAGE = "/look/page/"  # files of the page at /, which asks for the token itself
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"cache-control", b"no-store"),
]
HEADERS += [(b"content-security-policy", b"frame-ancestors 'self'")]


class Front:
    """An ASGI middleware: refuses what `origins` and `token` refuse, counts the rest by their paths."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        origins: Origins | None = None,
        token: Token | None = None,
    ) -> None:
        self.app, self.metrics, self.origins, self.token = app, metrics, origins, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        refusal = self.origins.refusal(scope) if self.origins else None
        if refusal is None and self.token and not _is_public(scope["path"]):
            refusal = self.token.refusal(scope)
        if refusal is None:
            answer = self.app
        else:
            bearer = {"WWW-Authenticate": "Bearer"} if refusal[0] == 401 else None
            answer = Json({"error": f"refused: {refusal[1]}"}, refusal[0], bearer)
        try:
            await answer(scope, receive, counted)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - began)


def _is_public(path: str) -> bool:
    return path in PUBLIC or path.startswith(PAGE)
