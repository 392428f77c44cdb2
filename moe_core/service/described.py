"""How OpenAPI describes bodies with images, and what a request may be refused for."""

from typing import Any

from moe_core.service.answers import Problem
from moe_core.service.bodies import MULTIPART, NPY

BINARY = {"schema": {"type": "string", "format": "binary"}}
FORM = {"type": "object", "properties": {"images": {"type": "array", "items": BINARY["schema"]}}}
IMAGES = {
    "description": "One image as it is; several as files of a form, or as an array of pixels (N, S, S, 3) uint8.",
    "required": True,
    "content": {
        "application/octet-stream": BINARY,
        "image/jpeg": BINARY,
        "image/png": BINARY,
        MULTIPART: {"schema": FORM},
        NPY: BINARY,
    },
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request cannot be read."},
    401: {"description": "The token is missing or wrong."},
    408: {"description": "The body did not come in time."},
    413: {"description": "The body is too large, or has too many images."},
    422: {"description": "No image could be decoded, or a parameter is out of range."},
    429: {"description": "Too much waits already: try again after Retry-After seconds."},
    503: {"description": "The mixture cannot answer."},
    504: {"description": "No answer within the time limit."},
}
PROBLEMS = {status: row | {"model": Problem} for status, row in PROBLEMS.items()}
