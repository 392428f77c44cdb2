"""/search: posts nearest to images, posts and hashtags, by the mixture that answers.

Posts need a study; with a bundle alone every search is a 404 that says so.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from moe_core.errors import BadImage, BadSetting, HardmoeError, MissingInput, Unknown
from moe_core.service.answers import Json, Near, Posts
from moe_core.service.bodies import BadBody
from moe_core.service.described import IMAGES, PROBLEMS
from moe_core.service.limits import Room
from moe_core.service.looking import ALONE, Looking
from moe_core.text import one_line

if TYPE_CHECKING:  # answers with a bundle alone need no pyarrow
    from moe_core.search.browse import Browser
    from moe_core.search.searcher import Hit

STATUS = {Unknown: 404, MissingInput: 404, BadImage: 422, BadSetting: 422}
SEARCHES = Room(64, "searches")  # that are under way
DESCRIBED: dict[int | str, dict[str, Any]] = PROBLEMS | {
    404: {"description": "No such post or hashtag.", "model": Near}
}

Tag = Annotated[list[str], Query(max_length=20, description="A hashtag that is wanted.")]
Without = Annotated[list[str], Query(max_length=20, description="A hashtag that is not wanted.")]
Post = Annotated[list[str], Query(max_length=20, description="Id of a post that is asked by.")]
Split = Annotated[str | None, Query(max_length=100, description="Only posts of train, validation or test.")]
Expert = Annotated[str | None, Query(max_length=100, description="Only posts of this expert, such as e003.")]
User = Annotated[str | None, Query(max_length=1000, description="Only posts of this user.")]
Carrying = Annotated[str | None, Query(max_length=1000, description="Only posts that carry this hashtag.")]
Since = Annotated[str | None, Query(max_length=40, description="Only posts from then on, such as 2015-06.")]
Until = Annotated[str | None, Query(max_length=40, description="Only posts up to the end of this, such as 2015.")]
Top = Annotated[int, Query(ge=1, le=1000, description="Posts at most.")]

router = APIRouter()


@router.get("/search", response_model=Posts, responses=DESCRIBED, summary="Posts by hashtags and posts")
async def search(
    request: Request,
    tag: Tag = [],  # noqa: B006 - FastAPI copies it
    without: Without = [],  # noqa: B006
    post: Post = [],  # noqa: B006
    split: Split = None,
    expert: Expert = None,
    user: User = None,
    carrying: Carrying = None,
    since: Since = None,
    until: Until = None,
    top: Top = 20,
) -> Response:
    """Posts nearest to all of these together, the best first; hashtags also find posts that do not carry them."""
    asked = {"tags": tag, "without": without, "posts": post, "top": top}
    return await _found(request, asked, (split, expert, carrying, user), since, until)


@router.post(
    "/search",
    response_model=Posts,
    responses=DESCRIBED,
    openapi_extra={"requestBody": IMAGES},
    summary="Posts by images, hashtags and posts",
)
async def search_by_images(
    request: Request,
    tag: Tag = [],  # noqa: B006
    without: Without = [],  # noqa: B006
    post: Post = [],  # noqa: B006
    split: Split = None,
    expert: Expert = None,
    user: User = None,
    carrying: Carrying = None,
    since: Since = None,
    until: Until = None,
    top: Top = 20,
) -> Response:
    """Posts nearest to the images of the body and to the rest together. All images must be decodable."""
    async with request.app.state.service.pictures(request) as pictures:
        if error := next(filter(None, pictures.errors), ""):
            raise BadBody(422, f"an image could not be decoded: {error}")
        asked = {"images": [*pictures.pixels_NHWC], "tags": tag, "without": without, "posts": post, "top": top}
        return await _found(request, asked, (split, expert, carrying, user), since, until, pictures.names)


async def _found(
    request: Request,
    asked: dict[str, Any],
    filters: tuple[str | None, ...],
    since: str | None,
    until: str | None,
    names: Sequence[str | None] = (),
) -> Response:
    """The answer, or why there is none. `names` of its images. Raises TooMuch."""
    looking: Looking | None = getattr(request.app.state, "looking", None)
    if looking is None:
        return Json({"error": ALONE, "near": []}, 404)

    def search() -> Response:
        try:
            looked = looking.now()
            posts: Browser = looked.posts
            dates = {
                name: _moment(text, name == "until") for name, text in (("since", since), ("until", until)) if text
            }
            answer = posts.searcher.answer(filters=replace(posts.filters(*filters), **dates), **asked)
            published, images = looked.bundle.published, zip(names, answer.experts, strict=True)
            return Json(
                {
                    "mixture": looked.version,
                    "exact": answer.exact,
                    "images": [
                        {"image": name, "expert": key, "expert_published": published[key]} for name, key in images
                    ],
                    "hits": [_said(hit) | {"expert_published": published[hit.expert]} for hit in answer.hits],
                }
            )
        except HardmoeError as error:
            status = next((STATUS[kind] for kind in STATUS if isinstance(error, kind)), 503)
            return Json({"error": one_line(error, 500), "near": getattr(error, "near", [])}, status)
        except OSError as error:  # files that a takedown or gc removed meanwhile
            return Json({"error": f"the store cannot be read: {one_line(error, 300)}", "near": []}, 503)

    SEARCHES.take(1)
    try:
        return await run_in_threadpool(search)
    finally:
        SEARCHES.give(1)


def _said(hit: "Hit") -> dict[str, Any]:
    return asdict(hit) | {"taken_at": hit.taken_at and hit.taken_at.isoformat()}


def _moment(text: str, end: bool) -> Any:
    return resolve_name("moe_core.search.filters:moment")(text, end)
