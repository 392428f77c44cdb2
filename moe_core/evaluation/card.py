"""The card of a mixture, MODEL_CARD.md: what a person should know before using it. Text of users stands in code spans,
where Markdown and HTML mean nothing."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moe_core.evaluation.comparison import compare
from moe_core.evaluation.measures import HEADLINE, MEASURES
from moe_core.text import shown

LISTED = 40  # experts, and hashtags, that are named
CHARACTERS = 200  # of a text of users


@dataclass(frozen=True)
class Exposure:
    """What the study's list of takedowns says of the mixture."""

    entries: int  # posts and users on the list
    seen: int  # those of them on whose posts one of its networks was trained


@dataclass(frozen=True)
class Card:
    """What is known of a mixture. What is empty or None is not known, or not known any more."""

    study: str
    version: str
    license: str
    source: str  # format and address
    chosen: Mapping[str, Any]  # metadata of the mixture
    metadata: Mapping[str, Mapping[str, Any]]  # of splits, vocabulary and partition
    settings: Mapping[str, Any]  # that its parts were made with, by the tables of study.toml
    parts: Mapping[str, str]  # versions of what it was made from
    takedowns: Exposure
    table: Mapping[str, Any] | None = None  # of its evaluation
    name: str = ""  # that people gave it, and a note
    note: str = ""
    built: str = ""  # days in UTC, ISO 8601
    written: str = ""
    experts: Sequence[str] = field(default_factory=list)  # keys, in the gate's order


def render(card: Card) -> str:
    """Markdown with a line end at the end."""
    named = f", called {code(card.name)}" if card.name else ""
    lines = [f"# Model card of {code(card.study)}", ""]
    lines += [
        f"Mixture {code(card.version)}{named}: a hard mixture of {len(card.experts):,} convolutional experts that "
        "gives hashtags of images, built by hardmoe.",
    ]
    if card.built:
        lines += [f"Built on {card.built}; this card was written on {card.written}."]
    else:
        lines += ["This card was written when it was built: `hardmoe export` writes one with what is known since."]
    if card.note:
        lines += ["", f"Note: {code(card.note, 2000)}"]
    for title, section in (
        ("License", _license(card)),
        ("What it answers", _use(card)),
        ("Data", _data(card)),
        ("Figures", _figures(card)),
        ("Experts", _experts(card)),
        ("Takedowns", _takedowns(card)),
        ("Settings", _settings(card)),
        ("Lineage", _lineage(card)),
    ):
        lines += ["", f"## {title}", "", *section]
    return "\n".join(lines) + "\n"


def code(text: object, most: int = CHARACTERS) -> str:
    """A text of users as a code span on one line, which also a cell of a table can hold."""
    line = shown(text, most).replace("|", "\\|") or " "
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    room = " " if line[0] in "` " or line[-1] in "` " else ""
    return f"{fence}{room}{line}{room}{fence}"


def _license(card: Card) -> Iterator[str]:
    yield code(card.license) if card.license else "Not stated (`publish.license` in study.toml)."


def _use(card: Card) -> Iterator[str]:
    chosen = card.chosen
    size = card.settings.get("data", {}).get("image_size")
    square = f", of which the middle square is resized to {size} x {size} pixels" if size else ""
    yield f"- In: an image{square}. Out: a probability of each hashtag of the vocabulary, which sum to one."
    unpublished = sum(not published for published in chosen.get("published", {}).values())
    router = chosen.get("router_weight")
    with_trunk = chosen.get("answer") == "mixture_top1_router"
    mixed = f", the trunk's logits mixed in with weight {router}" if with_trunk else ""
    but = f"; for {unpublished:,} experts by the trunk, which does better" if unpublished else ""
    yield f"- Each image is answered by the one expert of its cluster{mixed}{but}."
    yield "- Hashtags are what people of the source wrote, not what is in the picture: wrong and private ones are there"
    yield "  as far as the vocabulary has them. Figures and probabilities are of that source, and of no other pictures."


def _data(card: Card) -> Iterator[str]:
    yield f"Source: {card.source}"
    yield ""
    yield "| | |"
    yield "| --- | --- |"
    splits, vocabulary = card.metadata.get("splits"), card.metadata.get("vocabulary")
    if splits:
        yield f"| posts | {splits['posts']:,} in {len(splits['snapshot']):,} shards |"
        for name, count in splits["splits"].items():
            yield f"| {name} | {count:,} |"
        yield f"| near-duplicates, kept on one side of the splits | {splits['near_duplicates']:,} |"
    if vocabulary:
        yield f"| hashtags | {vocabulary['hashtags']:,}; {vocabulary['dropped']:,} written ones were dropped |"
        yield f"| hashtags a training post | {vocabulary['tags_a_post']} |"
        frequent = ", ".join(map(code, vocabulary["most_frequent"][:LISTED]))
        yield f"| the most frequent | {frequent} |"
    if not splits or not vocabulary:
        yield "| the rest | is no longer in the store |"


def _figures(card: Card) -> Iterator[str]:
    if card.table is None:
        yield from _validation(card)
        return
    table = card.table
    yield f"On {table['n']:,} held-out test posts and {table['hashtags']:,} hashtags; in brackets intervals of 95 %."
    yield ""
    measures = list(MEASURES.values())
    yield f"| | {' | '.join(measure.title for measure in measures)} |"
    yield f"| --- |{' --- |' * len(measures)}"
    for row in table["rows"]:
        bold = "**" if row["name"] == table["published"] else ""
        cells = [_cell(row, measure.name, interval=measure in HEADLINE) for measure in measures]
        yield f"| {bold}{row['title']}{bold} | {' | '.join(cells)} |"
    yield ""
    yield f"Bold: the answer of this mixture. {compare(table).lines[0]}"
    yield ""
    yield from (f"- {line.strip()}" for line in compare(table).lines[1:])
    yield ""
    yield from _validation(card)


def _cell(row: Mapping[str, Any], name: str, interval: bool) -> str:
    if not interval:
        return f"{row[name]:.3f}"
    low, high = row[f"{name}_ci95"]
    return f"{row[name]:.3f} ({low:.3f} to {high:.3f})"


def _validation(card: Card) -> Iterator[str]:
    chosen = card.chosen
    if not chosen.get("validation_posts"):
        yield "Nothing was measured when it was built: there were no validation posts."
        return
    posts = chosen["validation_posts"]
    yield f"On the {posts:,} validation posts by which its answer was chosen, so better than on others:"
    yield ""
    for name, value in chosen["validation_p_at_1"].items():
        used = ", the answer" if name == chosen["answer"] else ""
        yield f"- P@1 {value:.3f}, cross-entropy {chosen['validation_cross_entropy'][name]:.3f} by `{name}`{used}"
    if error := chosen.get("validation_ece"):
        yield (
            f"- expected calibration error {error['before']:.3f}; {error['after']:.3f} with the temperature "
            f"{chosen['calibration_temperature']:.3f}"
        )
    if card.table is None:
        yield ""
        yield "Figures on test posts with intervals are measured after it is built, by the asset `evaluation`."


def _experts(card: Card) -> Iterator[str]:
    partition = card.metadata.get("partition", {})
    sizes, hashtags = partition.get("sizes"), partition.get("hashtags", {})
    yield "| expert | training posts | answers | gain in cross-entropy | hashtags that set it apart |"
    yield "| --- | --- | --- | --- | --- |"
    for number, key in enumerate(card.experts[:LISTED]):
        answers = "itself" if card.chosen.get("published", {}).get(key) else "the trunk"
        gain = card.chosen.get("validation_gain", {}).get(key)
        tags = ", ".join(code(tag) for tag, *_ in hashtags.get(key, [])[:5])
        size = f"{sizes[number]:,}" if sizes else ""
        yield f"| {key} | {size} | {answers} | {'' if gain is None else f'{gain:+.3f}'} | {tags} |"
    if len(card.experts) > LISTED:
        yield ""
        yield f"And {len(card.experts) - LISTED:,} more."


def _takedowns(card: Card) -> Iterator[str]:
    when = f"On {card.written}" if card.written else "When it was built"
    entries, seen = card.takedowns.entries, card.takedowns.seen
    if not entries:
        yield f"{when}, the study's list of takedowns was empty."
        return
    yield f"{when}, the study's list of takedowns had {entries:,} posts and users."
    if seen:
        yield f"**Networks of this mixture were trained on posts of {seen:,} of them.**"
        yield "`hardmoe run` builds one without these posts."
    else:
        yield "No network of this mixture was trained on their posts."


def _settings(card: Card) -> Iterator[str]:
    yield "Those that its parts were built with, as in study.toml:"
    yield ""
    lines: list[str] = []
    for table, settings in card.settings.items():
        lines += ["", f"[{table}]"] if lines else [f"[{table}]"]
        lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in settings.items()]
    text = [shown(line, 1000) for line in lines]
    fence = "`" * max(3, *(1 + len(run) for line in text for run in re.findall("`+", line)), 3)
    yield f"{fence}toml"
    yield from text
    yield fence


def _lineage(card: Card) -> Iterator[str]:
    yield f"`hardmoe lineage mixture --version {card.version}` follows these down to shards."
    yield ""
    yield "| part | version |"
    yield "| --- | --- |"
    experts = [name for name in card.parts if name in set(card.experts)]
    hidden = set(experts[LISTED:])
    for name, version in card.parts.items():
        if name not in hidden:
            yield f"| {name} | {code(version)} |"
    if hidden:
        yield f"| {len(hidden):,} more experts | |"
