"""Answers as one page, from templates/search.html.j2: it needs no other file and no network, and text stays text."""

import base64
import re

from jinja2 import Environment, PackageLoader, StrictUndefined

from moe_core.search.searcher import Hit, Searcher
from moe_core.text import shown

KINDS = {b"\x89PNG": "image/png", b"\xff\xd8": "image/jpeg", b"RIFF": "image/webp"}
URL = re.compile(r"https?://\S+", re.IGNORECASE)  # nothing else becomes a link


def render(searcher: Searcher, asked: str, about: str, hits: list[Hit]) -> str:
    """The page: what was `asked`, what is to be known `about` the answer, and each hit with its stored picture."""
    environment = Environment(
        loader=PackageLoader("moe_core.search"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    rows = []
    for hit in hits:
        picture = searcher.picture(hit.id)
        expert = hit.expert if searcher.published[hit.expert] else f"{hit.expert} (the trunk answers)"
        date = hit.taken_at.isoformat(" ", "minutes") if hit.taken_at else None
        rows.append(
            {
                "picture": data_uri(picture) if picture else "",
                "score": f"{hit.score:.3f}",
                "id": shown(hit.id, 200),
                "tags": [shown(tag, 100) for tag in hit.tags],
                "details": " · ".join(shown(part, 100) for part in (expert, hit.split, hit.user, date) if part),
                "original": shown(hit.original or "", 2048),
                "url": hit.original if hit.original and URL.fullmatch(hit.original) else "",
            }
        )
    return environment.get_template("search.html.j2").render(asked=asked, about=about, hits=rows)


def data_uri(picture: bytes) -> str:
    """An image file as the address of an <img>."""
    kind = next((kind for magic, kind in KINDS.items() if picture.startswith(magic)), "application/octet-stream")
    return f"data:{kind};base64,{base64.b64encode(picture).decode()}"
