"""Asking a mixture: search."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from moe_core.errors import BadSetting
from moe_core.search.filters import Filters, moment
from moe_core.search.page import render
from moe_core.search.searcher import Answer, Hit, Searcher
from moe_core.store.files import write_text
from moe_core.text import shown
from pipelines.cli.common import study_at
from pipelines.cli.options import JSON, STUDY_OPTION
from pipelines.terminal import echo, echo_json


@click.command()
@STUDY_OPTION
@click.option("--version", default=None, help="Of the mixture, its name or beginning.  [default: the published one]")
@click.option("--image", "images", multiple=True, type=click.Path(path_type=Path), help="An image file; several: all.")
@click.option("--post", "posts", multiple=True, metavar="ID", help="A post; it is left out of the answer.")
@click.option("--tag", "tags", multiple=True, metavar="HASHTAG", help="A hashtag that is wanted.")
@click.option("--not", "without", multiple=True, metavar="HASHTAG", help="A hashtag that is not wanted.")
@click.option("--split", default=None, help="Only posts of a split: train, validation, test, router, dropped.")
@click.option("--expert", default=None, help="Only posts of an expert, such as e003.")
@click.option("--user", default=None, help="Only posts of a user.")
@click.option("--carrying", default=None, metavar="HASHTAG", help="Only posts that carry a hashtag.")
@click.option("--since", default=None, metavar="DATE", help="Only posts from then on: 2015, 2015-06, 2015-06-30.")
@click.option("--until", default=None, metavar="DATE", help="Only posts up to the end of it.")
@click.option("--top", default=20, show_default=True, help="Posts, at most.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with the pictures; it needs no network.")
@JSON
def search(
    study_file: Path,
    version: str | None,
    images: tuple[Path, ...],
    posts: tuple[str, ...],
    tags: tuple[str, ...],
    without: tuple[str, ...],
    split: str | None,
    expert: str | None,
    user: str | None,
    carrying: str | None,
    since: str | None,
    until: str | None,
    top: int,
    html: Path | None,
    as_json: bool,
) -> None:
    """Posts that are nearest to images, posts and hashtags, all together.

    A score is a cosine: 1 is the same direction. Each line shows score, id, expert, hashtags, user, date and where the
    source has the image.

    \b
    Example: hardmoe search --study cats --image cat.jpg --not dog
             hardmoe search --study cats --tag sunset --tag beach --since 2015 --html found.html
    """
    filters = Filters(
        split,
        expert,
        user,
        carrying,
        None if since is None else moment(since),
        None if until is None else moment(until, end=True),
    )
    if html is not None and not html.absolute().parent.is_dir():
        raise BadSetting(f"--html {html}: there is no folder {html.absolute().parent}")
    searcher = Searcher(study_at(study_file), version)
    answer = searcher.answer(images, posts, tags, without, filters, top)
    asked = " ".join(
        [
            *(f"image {shown(path, 200)}" for path in images),
            *(f"post {shown(post, 200)}" for post in posts),
            *(f"#{shown(tag)}" for tag in tags),
            *(f"without #{shown(tag)}" for tag in without),
        ]
    )
    if html is not None:
        write_text(html, render(searcher, asked, _about(searcher, answer), answer.hits))
        echo(f"{len(answer.hits)} posts in {html}", err=True)
    if as_json:
        echo_json(_document(searcher, answer, images))
        return
    for path, key in zip(images, answer.experts, strict=True):
        echo(f"{shown(path, 200)}: expert {_expert(searcher, key)}", err=True)
    for hit in answer.hits:
        echo(_line(searcher, hit))
    echo(_about(searcher, answer), err=True)


def _expert(searcher: Searcher, key: str) -> str:
    """As predict shows it: an expert that the publish gate rejected embeds, and the trunk answers."""
    return key if searcher.published[key] else f"{key}: trunk"


def _line(searcher: Searcher, hit: Hit) -> str:
    words = [f"{hit.score:.3f}", shown(hit.id, 200), f"[{_expert(searcher, hit.expert)}]"]
    words.append(" ".join(shown(tag, 100) for tag in hit.tags))
    words += [shown(hit.user, 100)] if hit.user else []
    words += [f"{hit.taken_at:%Y-%m-%d}"] if hit.taken_at else []
    words += [shown(hit.original, 2048)] if hit.original else []
    return "  ".join(words)


def _about(searcher: Searcher, answer: Answer) -> str:
    of = f"{len(searcher):,} posts of mixture {searcher.mixture.version}"
    if answer.exact:
        return f"All of the {of} were compared."
    recall: Any = searcher.index.metadata["recall"]
    measured = ", ".join(f"{kind} {share:.3f}" for kind, share in recall.items())
    return f"By the index of {of}; share of the nearest posts that it found when it was built: {measured}."


def _document(searcher: Searcher, answer: Answer, images: tuple[Path, ...]) -> dict[str, Any]:
    about = searcher.index.metadata
    return {
        "mixture": searcher.mixture.version,
        "index": {
            "version": searcher.index.version,
            **{name: about[name] for name in ("posts", "lists", "probes", "recall")},
            "exact": answer.exact,
        },
        "images": [
            {"image": str(path), "expert": key, "expert_published": searcher.published[key]}
            for path, key in zip(images, answer.experts, strict=True)
        ],
        "hits": [
            asdict(hit)
            | {
                "expert_published": searcher.published[hit.expert],
                "taken_at": hit.taken_at.isoformat() if hit.taken_at else None,
            }
            for hit in answer.hits
        ],
    }
