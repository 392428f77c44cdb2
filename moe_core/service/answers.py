"""What the endpoints say, as JSON and as OpenAPI describes it."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from moe_core.service.service import Answered

DIGITS = 5  # of a probability


class Said(BaseModel):
    """What all of these have in common."""

    model_config = ConfigDict(extra="forbid")


class Problem(Said):
    """Why a request is not answered."""

    error: str


class Tag(Said):
    """A hashtag and its probability."""

    tag: str
    p: float


class ImageAnswer(Said):
    """One image: its answer, or why there is none."""

    image: str | None = Field(description="The file's name, where the request gives one.")
    error: str | None = Field(None, description="Why it could not be decoded; then nothing else is there.")
    expert: str | None = Field(None, description="The expert that the router sends it to.")
    expert_published: bool | None = Field(None, description="Whether that expert answers; if not, the trunk does.")


class Prediction(ImageAnswer):
    """Hashtags of an image."""

    answer: str | None = Field(None, description="How the mixture answers: mixture_top1 or mixture_top1_router.")
    tags: list[Tag] | None = Field(None, description="The most probable first.")


class Embedding(ImageAnswer):
    """An image in the embedding space of all experts, by its own expert, published or not, as posts are."""

    embedding: list[float] | None = None


class Predictions(Said):
    """Answers to the images of a request, in order."""

    mixture: str = Field(description="Version of the mixture.")
    images: list[Prediction]


class Embeddings(Said):
    """Embeddings of the images of a request, in order."""

    mixture: str
    width: int
    images: list[Embedding]


class Hashtags(Said):
    """Hashtags of the mixture, by id."""

    mixture: str
    count: int = Field(description="Of those that match.")
    tags: list[str]


class Near(Problem):
    """A post or hashtag that is not there, or no posts at all."""

    near: list[str] = Field([], description="Spellings that may be meant.")


class Routed(Said):
    """An image that was asked by, and whose embedding that is."""

    image: str | None
    expert: str
    expert_published: bool


class Found(Said):
    """A post."""

    id: str
    score: float = Field(description="Inner product of the query and the post's embedding, both of unit length.")
    tags: list[str]
    expert: str
    expert_published: bool
    split: str | None
    user: str | None
    taken_at: str | None = Field(description="UTC, ISO 8601.")
    original: str | None = Field(description="Path or URL where the source has the image.")
    shard: str


class Posts(Said):
    """Posts that were found, the best first, as `hardmoe search --json` has them."""

    mixture: str
    exact: bool = Field(description="Whether every post was compared.")
    images: list[Routed] = Field(description="Those that were asked by.")
    hits: list[Found]


class Ready(Said):
    """Which mixture answers."""

    ready: bool
    mixture: str
    since: str = Field(description="When it began to answer: UTC, ISO 8601.")


class Alive(Said):
    """The process answers."""

    ok: bool


class Json(Response):
    """A JSON document of any text, also of one that is not Unicode."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode()


def predictions(answered: Answered, least: float, limit_V: np.ndarray | None) -> dict[str, Any]:
    """Predictions, hashtags of probability `least` and more, and of their own limit."""
    bundle, answers = answered.mixture.bundle, answered.answers
    names = bundle.hashtags

    def said(place: int) -> dict[str, Any]:
        assert answers is not None
        pairs = zip(answers.hashtags_NK[place], answers.p_NK[place], strict=True)
        tags = [
            {"tag": names[tag], "p": round(p, DIGITS)}
            for tag, p in pairs
            if p >= least and (limit_V is None or p >= limit_V[tag])
        ]
        return {"answer": bundle.answer, "tags": tags}

    return {"mixture": answered.mixture.version, "images": [*_rows(answered, said)]}


def embeddings(answered: Answered) -> dict[str, Any]:
    """Embeddings."""
    answers = answered.answers

    def said(place: int) -> dict[str, Any]:
        assert answers is not None
        assert answers.embeddings_ND is not None
        return {"embedding": answers.embeddings_ND[place].tolist()}

    width = answered.mixture.bundle.router.width
    return {"mixture": answered.mixture.version, "width": width, "images": [*_rows(answered, said)]}


def _rows(answered: Answered, said: Any) -> Iterable[dict[str, Any]]:
    published, answers = answered.mixture.bundle.published, answered.answers
    for name, error, place in answered.rows():
        if error or answers is None:
            yield {"image": name, "error": error}
        else:
            expert = answers.experts[place]
            yield {"image": name, "expert": expert, "expert_published": published[expert]} | said(place)
