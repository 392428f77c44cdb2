"""What the card of a mixture says that follows from what it was made from."""

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from moe_core.data.takedowns import Takedowns
from moe_core.engine.context import Context
from moe_core.evaluation.card import Card, Exposure, code
from moe_core.settings import Source
from moe_core.store.artifact import Spec, name_of

STAGES = ("trunk", "partition", "shared_decoder", "vocabulary")  # inputs of a mixture beside its experts


def card_of(context: Context, mixture: Spec, chosen: Mapping[str, Any]) -> Card:
    """The card of a mixture with this metadata; what the store no longer has of its parts is left out."""
    store, study, inputs = context.store, context.study, mixture.inputs
    experts = [name for name in inputs if name not in STAGES]
    made = {name: artifact for name in STAGES if (artifact := store.get(name, None, inputs[name]))}
    if "vocabulary" in made and (splits := store.get("splits", None, made["vocabulary"].inputs["splits"])):
        made["splits"] = splits
    if experts and (expert := store.get("expert", experts[0], inputs[experts[0]])):
        made["expert"] = expert
    return Card(
        study.name,
        mixture.version,
        study.publish.license,
        source_of(study.source),
        chosen,
        {name: made[name].metadata for name in ("splits", "vocabulary", "partition") if name in made},
        _settings_of([*(artifact.settings for artifact in made.values()), mixture.settings]),
        dict(inputs),
        exposure(context.takedowns, mixture.version, inputs),
        experts=experts,
    )


def source_of(source: Source) -> str:
    """Format and address of a source; of a local path the last name alone, since a card travels."""
    if source.format == "synthetic":
        return f"synthetic data, {source.posts:,} posts"
    parts = urlsplit(source.uri)
    # without passwords, and tokens of a query
    remote = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if "://" in source.uri else ""
    return f"{source.format} {code(remote or PurePath(source.uri).name)}"


def exposure(takedowns: Takedowns, version: str, inputs: Mapping[str, str]) -> Exposure:
    """How many of the takedowns a mixture's networks were trained on."""
    labels = {f"mixture {version}"}
    labels |= {f"{name_of(*_place(name))} {its}" for name, its in inputs.items()}
    entries = takedowns.entries.values()
    return Exposure(len(entries), sum(bool(labels & set(entry.saw)) for entry in entries))


def _place(name: str) -> tuple[str, str | None]:
    return (name, None) if name in STAGES else ("expert", name)


def _settings_of(recorded: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """Settings that artifacts record, by table."""
    settings: dict[str, dict[str, Any]] = {}
    for tables in recorded:
        for table, values in tables.items():
            if isinstance(values, dict):
                settings.setdefault(table, {}).update(values)
    return settings
