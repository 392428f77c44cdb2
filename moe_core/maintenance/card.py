"""The card of a mixture with all that is known today: figures of its evaluation, its name, takedowns since."""

import json
from dataclasses import replace
from datetime import UTC, datetime

from moe_core.engine.context import Context
from moe_core.errors import MissingInput
from moe_core.evaluation.card import render
from moe_core.serving.names import Label, read_labels
from moe_core.stages.mixture.card import card_of


def card_today(context: Context, version: str) -> str:
    """MODEL_CARD.md of a mixture in the store. Raises MissingInput where it is not there."""
    store = context.store
    mixture = store.get("mixture", None, version)
    if mixture is None:
        raise MissingInput(f"no mixture {version} in {store.uri}", "mixture")
    evaluations = [each for each in store.versions("evaluation", None) if each.inputs.get("mixture") == version]
    newest = max(evaluations, key=lambda each: each.made_at, default=None)
    label = read_labels(store.documents).get(version, Label())
    card = replace(
        card_of(context, mixture.spec, mixture.metadata),
        table=json.loads(newest.file("table.json").read_text("utf-8")) if newest else None,
        name=label.name,
        note=label.note,
        built=f"{datetime.fromtimestamp(mixture.made_at, UTC):%Y-%m-%d}",
        written=f"{datetime.now(UTC):%Y-%m-%d}",
    )
    return render(card)
