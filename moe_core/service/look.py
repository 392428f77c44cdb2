"""The page at `/`, and the JSON that it asks for under `/look`: what a mixture and its posts look like.

With a bundle alone the page answers to images and lists hashtags; posts need a study. Every answer is bounded, lists
are paged. The page is plain files of this package; it asks nothing of any other server.
"""

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from moe_core.errors import BadImage, BadSetting, HardmoeError, MissingInput, Unknown
from moe_core.service.answers import Json
from moe_core.service.bodies import BadBody, decoded, read_body
from moe_core.service.limits import Limits
from moe_core.service.looking import Looked, Looking
from moe_core.serving.bundle import Bundle
from moe_core.serving.why import Why, explain
from moe_core.text import one_line

if TYPE_CHECKING:  # answers with a bundle alone need no pyarrow
    from moe_core.search.browse import Post
    from moe_core.search.searcher import Hit

PAGE = files("moe_core.service") / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
FILES = {file.name: file.read_bytes() for file in PAGE.iterdir() if file.name[file.name.rfind(".") :] in KINDS}
OWN = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
HEADERS = {
    "Content-Security-Policy": OWN + "base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "Referrer-Policy": "no-referrer",
}
STATUS = {Unknown: 404, BadImage: 422, BadSetting: 422, MissingInput: 409}
SIMILAR = 12  # posts shown beside one
IMAGE = Limits(body_bytes=32 << 20)  # of one that is dropped
SECONDS = 60  # for it to come

Text = Annotated[str | None, Query(max_length=1000)]
Texts = Annotated[list[str], Query(max_length=20)]
Some = TypeVar("Some", bound=Callable[..., Any])

router = APIRouter(include_in_schema=False)


def _answered(endpoint: Some) -> Some:
    """An endpoint in a thread of its own, whose errors are said to the page: `near` has spellings that may be meant."""

    @wraps(endpoint)
    def answer(*arguments: Any, **more: Any) -> Response:
        try:
            return Json(endpoint(*arguments, **more))
        except HardmoeError as error:
            status = next((STATUS[kind] for kind in STATUS if isinstance(error, kind)), 503)
            return Json({"error": one_line(error, 500), "near": getattr(error, "near", [])}, status)
        except OSError as error:  # files that a takedown or gc removed meanwhile
            return Json({"error": f"the store cannot be read: {one_line(error, 300)}", "near": []}, 503)

    return answer  # type: ignore[return-value]


def _looked(request: Request) -> Looked:
    looking: Looking = request.app.state.looking
    return looking.now()


@router.get("/")
async def page() -> Response:
    return Response(FILES["index.html"], media_type="text/html", headers=HEADERS)


@router.get("/look/page/{name}")
async def part(name: str) -> Response:
    if name not in FILES:
        return Json({"error": "no such file"}, 404)
    return Response(FILES[name], media_type=KINDS[name[name.rfind(".") :]], headers=HEADERS)


@router.get("/look/about")
@_answered
def about(request: Request) -> Any:
    """What there is to look at."""
    looking: Looking = request.app.state.looking
    looked = looking.now(again=True)
    browser, bundle = looked.browser, looked.bundle
    return {
        "mixture": looked.version,
        "study": looking.study,
        "experts": [{"key": key, "published": good} for key, good in bundle.published.items()],
        "hashtags": len(bundle.hashtags),
        "answer": bundle.answer,
        "posts": len(browser.searcher) if browser else None,
        "splits": browser.splits() if browser else {},
        "why": looked.why,
    }


@router.get("/look/experts")
@_answered
def experts(request: Request) -> Any:
    """Each cluster with its hashtags and typical posts."""
    return {"experts": [asdict(cluster) for cluster in _looked(request).posts.clusters()]}


@router.get("/look/posts")
@_answered
def posts(
    request: Request,
    split: Text = None,
    expert: Text = None,
    tag: Text = None,
    user: Text = None,
    order: Text = "stored",
    first: Annotated[int, Query(ge=0, le=10**12)] = 0,
    top: Annotated[int, Query(ge=1, le=200)] = 60,
) -> Any:
    """A page of posts."""
    browser = _looked(request).posts
    found = browser.page(browser.filters(split, expert, tag, user), order or "stored", first, top)
    return {"total": found.total, "judged": found.judged, "posts": [_said(post) for post in found.posts]}


@router.get("/look/post")
@_answered
def post(request: Request, id: Text = None) -> Any:
    """One post: what is known of it, why its expert, what is near it."""
    looked = _looked(request)
    browser, post_id = looked.posts, id or ""
    found, picture = browser.post(post_id), browser.searcher.picture(post_id)
    near = browser.searcher.find(posts=[post_id], top=SIMILAR)
    why = _explained(looked.bundle, picture) if picture else None
    at = browser.plane.at(browser.searcher.vectors.rows(np.array([found.row])))[0].tolist()
    return {"post": _said(found), "why": _reasons(why), "near": [_hit(hit) for hit in near], "at": at}


@router.get("/look/picture")
def picture(request: Request, id: Text = None) -> Response:
    """The stored image of a post."""
    try:
        found = _looked(request).posts.searcher.picture(id or "")
    except (HardmoeError, OSError) as error:
        return Json({"error": one_line(error, 500)}, 503)
    if found is None:
        return Json({"error": "no such picture"}, 404)
    return Response(found, media_type=_kind(found))


@router.get("/look/search")
@_answered
def search(
    request: Request,
    tag: Texts = [],  # noqa: B006 - FastAPI copies it
    without: Texts = [],  # noqa: B006
    post: Texts = [],  # noqa: B006
    split: Text = None,
    expert: Text = None,
    top: Annotated[int, Query(ge=1, le=200)] = 60,
) -> Any:
    """Posts nearest to hashtags and posts."""
    browser = _looked(request).posts
    hits = browser.searcher.find(posts=post, tags=tag, without=without, filters=browser.filters(split, expert), top=top)
    return {"posts": [_hit(hit) for hit in hits]}


@router.post("/look/image")
async def image(request: Request, top: Annotated[int, Query(ge=1, le=200)] = 60) -> Response:
    """An image, the body: what the mixture says of it, why its expert, and the posts nearest to it."""
    looking: Looking = request.app.state.looking
    looking.room.take(1)
    try:
        async with asyncio.timeout(SECONDS):
            body = await read_body(request, IMAGE)
        return await run_in_threadpool(_image, request, body, top)
    except TimeoutError:
        raise BadBody(408, f"the image did not come in {SECONDS} s") from None
    except ClientDisconnect:
        raise BadBody(400, "the image ends early") from None
    finally:
        looking.room.give(1)


@_answered
def _image(request: Request, body: bytes, top: int) -> Any:
    looked = _looked(request)
    why = _explained(looked.bundle, body)
    if looked.browser is None:
        return {"why": _reasons(why), "posts": None, "at": None}
    hits = looked.browser.searcher.find(images=[body], top=top)
    at = looked.browser.plane.at(why.embedding_D[None])[0].tolist()
    return {"why": _reasons(why), "posts": [_hit(hit) for hit in hits], "at": at}


@router.get("/look/map")
@_answered
def sample(request: Request) -> Any:
    """A sample of posts on a plane: [x, y, number of the expert] and the id of each."""
    browser = _looked(request).posts
    there = [*browser.on_plane()]
    points = [[round(x, 4), round(y, 4), browser.keys.index(post.expert)] for post, x, y in there]
    return {
        "of": len(browser.searcher),
        "share": round(browser.plane.share, 3),
        "points": points,
        "ids": [post.id for post, _, _ in there],
    }


@router.get("/look/tags")
@_answered
def tags(request: Request, match: Text = "", top: Annotated[int, Query(ge=1, le=500)] = 60) -> Any:
    """Hashtags of the mixture that contain a text, the most frequent first, those that begin with it before others."""
    hashtags = _looked(request).bundle.hashtags
    wanted = (match or "").lstrip("#").casefold()
    found = [tag for tag in hashtags if wanted in tag.casefold()]
    found.sort(key=lambda tag: not tag.casefold().startswith(wanted))
    return {"total": len(found), "tags": found[:top]}


def _explained(bundle: Bundle, picture: bytes) -> Why:
    """Raises BadImage."""
    ((pixels, error),) = decoded([picture], bundle.image_size)
    if error:
        raise BadImage(f"this image is not used: {error}")
    side = bundle.image_size
    return explain(bundle, np.frombuffer(bytearray(pixels), np.uint8).reshape(1, side, side, 3))[0]


def _reasons(why: Why | None) -> Any:
    if why is None:
        return None
    return {
        "experts": [asdict(near) for near in why.experts],
        "mixture": why.mixture,
        "expert": why.expert,
        "trunk": why.trunk,
    }


def _said(post: "Post") -> dict[str, Any]:
    return asdict(post) | {"taken_at": post.taken_at and post.taken_at.isoformat(" ")}


def _hit(hit: "Hit") -> dict[str, Any]:
    return asdict(hit) | {"taken_at": hit.taken_at and hit.taken_at.isoformat(" ")}


def _kind(image: bytes) -> str:
    if image[:4] == b"RIFF":
        return "image/webp"
    return "image/png" if image[:4] == b"\x89PNG" else "image/jpeg"
