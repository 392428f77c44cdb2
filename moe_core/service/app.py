"""The application: endpoints over a mixture, behind a guard.

Another page is mounted by its own router: `create_app(..., routers=[router])`; its endpoints find the service at
`request.app.state.service`. Paths that are listed in PUBLIC are answered without the token.
"""

import io
import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from moe_core.service import answers, searching
from moe_core.service.answers import Alive, Embeddings, Hashtags, Json, Predictions, Ready
from moe_core.service.bodies import NPY, BadBody
from moe_core.service.described import BINARY, IMAGES, PROBLEMS
from moe_core.service.front import Front
from moe_core.service.guard import Origins, Token
from moe_core.service.limits import TooMuch
from moe_core.service.service import Answered, Failed, Late, Service
from moe_core.text import shown

MOST_TAGS = 1000  # of one answer
TOP, TOP_OF_LIMITED = 5, 50  # hashtags of an image, as in `hardmoe predict`
log = logging.getLogger(__name__)
router = APIRouter()


def create_app(
    service: Service,
    *,
    origins: Origins | None = None,
    token: Token | None = None,
    routers: Sequence[APIRouter] = (),
) -> FastAPI:
    """The application of a service. `origins` and `token` refuse requests; `routers` add paths of others."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="hardmoe",
        description="Hashtags and embeddings of images, by a hard mixture of experts.",
        version=_version(),
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    methods: dict[str, set[str]] = {}  # of each path
    for each in (router, searching.router, *routers):
        app.include_router(each)
        for route in each.routes:
            methods.setdefault(getattr(route, "path", ""), set()).update(getattr(route, "methods", None) or ())
    app.add_middleware(Front, metrics=service.metrics, origins=origins, token=token)
    for error, status in ((BadBody, 0), (TooMuch, 429), (Late, 504), (Failed, 503)):
        app.add_exception_handler(error, _problem(status))
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error(methods))
    app.add_exception_handler(Exception, _bug)
    return app


Top = Annotated[
    int | None,
    Query(ge=1, le=MOST_TAGS, description=f"Hashtags an image: {TOP}, or {TOP_OF_LIMITED} with min_p or precision."),
]
Least = Annotated[float, Query(ge=0, le=1, description="Leave out hashtags that are less probable.")]
Precision = Annotated[
    float | None,
    Query(ge=0, le=1, description="Only hashtags above their threshold for this precision, by validation posts."),
]


@router.post(
    "/predict",
    response_model=Predictions,
    responses=PROBLEMS,
    openapi_extra={"requestBody": IMAGES},
    summary="Hashtags",
)
async def predict(request: Request, top: Top = None, min_p: Least = 0.0, precision: Precision = None) -> Response:
    """The most probable hashtags of each image, by the mixture's published answer, as `hardmoe predict` gives them."""
    most = top or (TOP if precision is None and not min_p else TOP_OF_LIMITED)
    answered = _some(await _service(request).answer(request, top=most))
    limit_V = None if precision is None else answered.mixture.limits_of(precision)
    if precision is not None and limit_V is None:
        raise BadBody(
            422, f"precision: mixture {answered.mixture.version} has no thresholds; min_p asks for a lowest p"
        )
    return Json(answers.predictions(answered, min_p, limit_V))


@router.post(
    "/embed",
    response_model=Embeddings,
    responses=PROBLEMS | {200: {"content": {NPY: BINARY}}},
    openapi_extra={"requestBody": IMAGES},
    summary="Embeddings",
)
async def embed(request: Request) -> Response:
    """Each image in the embedding space that search uses: by its own expert, published or not.

    With `Accept: application/x-npy` an array (N, D) float32, where all images could be decoded.
    """
    answered = _some(await _service(request).answer(request, embed=True))
    if NPY not in request.headers.get("accept", ""):
        return Json(answers.embeddings(answered))
    if failed := next(filter(None, answered.errors), ""):
        raise BadBody(422, f"an image could not be decoded: {failed}")
    assert answered.answers is not None
    assert answered.answers.embeddings_ND is not None
    file = io.BytesIO()
    np.save(file, answered.answers.embeddings_ND, allow_pickle=False)
    return Response(file.getvalue(), media_type=NPY, headers={"X-Mixture": answered.mixture.version})


@router.get("/tags", response_model=Hashtags, responses={s: PROBLEMS[s] for s in (401, 422)}, summary="Vocabulary")
async def tags(
    request: Request,
    match: Annotated[str, Query(max_length=200, description="Only hashtags that contain this.")] = "",
    first: Annotated[int, Query(ge=0, le=10**9, description="Leave out so many of them.")] = 0,
    top: Annotated[int, Query(ge=1, le=10_000, description="At most so many.")] = 1000,
) -> Response:
    """Hashtags that the mixture knows."""
    mixture = _service(request).following.now
    match = match.casefold()
    found = [tag for tag in mixture.bundle.hashtags if match in tag.casefold()] if match else mixture.bundle.hashtags
    return Json({"mixture": mixture.version, "count": len(found), "tags": found[first : first + top]})


@router.get("/healthz", response_model=Alive, summary="Whether the process answers")
async def healthz() -> Response:
    """Asks nothing of the mixture, and wants no token."""
    return Json({"ok": True})


@router.get(
    "/readyz", response_model=Ready, responses={s: PROBLEMS[s] for s in (401, 503)}, summary="Whether it can answer"
)
async def readyz(request: Request) -> Response:
    """Which mixture answers, and since when."""
    service = _service(request)
    mixture = service.following.now
    since = datetime.fromtimestamp(mixture.since, UTC).isoformat(timespec="seconds")
    if not service.batcher.is_running:
        raise Failed("it is ending")
    return Json({"ready": True, "mixture": mixture.version, "since": since})


@router.get("/metrics", responses={401: PROBLEMS[401]}, summary="Figures for Prometheus", response_class=Response)
async def metrics(request: Request) -> Response:
    """Requests, images, batches, experts, memory."""
    return Response(_service(request).metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _some(answered: Answered) -> Answered:
    """Raises BadBody where no image could be decoded."""
    if answered.answers is None:
        more = f", and {len(answered.errors) - 1:,} more" if len(answered.errors) > 1 else ""
        raise BadBody(422, f"no image could be decoded: {answered.errors[0]}{more}")
    return answered


def _problem(status: int) -> Any:
    """A handler that answers with a status, or the error's own."""

    async def said(_: Request, error: Exception) -> Response:
        headers = {"Retry-After": str(error.retry_after)} if isinstance(error, TooMuch) else None
        return Json({"error": str(error)}, error.status if isinstance(error, BadBody) else status, headers)

    return said


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return Json({"error": shown(f"{where}: {first['msg']}", 300)}, 422)


def _http_error(methods: Mapping[str, Collection[str]]) -> Any:
    """A handler of what is not found; a wrong method is told the right ones of the path."""

    async def said(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(sorted(methods.get(request.url.path, ())))
        return Json({"error": f"{error.detail}"}, error.status_code, headers)

    return said


async def _bug(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, shown(request.url.path), exc_info=error)
    return Json({"error": HTTPStatus.INTERNAL_SERVER_ERROR.phrase}, 500)


def _version() -> str:
    try:
        return version("hardmoe")
    except PackageNotFoundError:
        return "0"
