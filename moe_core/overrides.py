"""`--set table.key=value`: changes of study.toml, with its comments kept.

What is made with other settings is another version, so a setting that held for one command alone would leave artifacts
that the study calls stale. A change is therefore written to study.toml, where `hardmoe status` and the next run see it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import BaseModel
from tomlkit.exceptions import TOMLKitError

from moe_core.errors import BadSetting
from moe_core.settings import Study
from moe_core.store.files import write_text
from moe_core.study_file import load_study, study_of, text_of


@dataclass(frozen=True)
class Change:
    """Of one setting."""

    name: str  # such as expert_training.epochs
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.name} {self.before!r} -> {self.after!r}"


@dataclass(frozen=True)
class Overridden:
    """study.toml with changes that are not written yet."""

    path: Path
    text: str
    study: Study
    changes: list[Change]  # of those settings only whose value is another

    def write(self) -> None:
        if self.changes:
            write_text(self.path, self.text)


def override(path: Path, assignments: Sequence[str]) -> Overridden:
    """Raises BadSetting for what is not table.key=value, for an unknown key and for a value that is refused."""
    before = load_study(path)
    document = tomlkit.parse(text_of(path))
    names = [_set(document, one) for one in assignments]
    text = tomlkit.dumps(document)
    after = study_of(text, path)
    changes = [Change(name, _value(before, name), _value(after, name)) for name in dict.fromkeys(names)]
    return Overridden(path, text, after, [one for one in changes if one.before != one.after])


def _set(document: tomlkit.TOMLDocument, assignment: str) -> str:
    """Sets it in the document and returns its name; a value that is no TOML is text."""
    name, equals, text = assignment.partition("=")
    keys = [key.strip() for key in name.split(".")]
    if not equals or not all(keys) or len(keys) > 2:
        raise BadSetting(f"--set {assignment}: wanted table.key=value, such as expert_training.epochs=3")
    try:
        value = tomlkit.value(text.strip())
    except TOMLKitError:
        value = tomlkit.item(text.strip())
    table: Any = document
    if len(keys) == 2:
        if not isinstance(document.get(keys[0]), dict):
            document[keys[0]] = tomlkit.table()
        table = document[keys[0]]
    there = table.get(keys[-1])
    if there is not None and isinstance(there, tomlkit.items.Item):
        value.trivia.comment_ws, value.trivia.comment = there.trivia.comment_ws, there.trivia.comment
        value.trivia.trail = there.trivia.trail
    table[keys[-1]] = value
    return ".".join(keys)


def _value(study: Study, name: str) -> Any:
    found: Any = study
    for key in name.split("."):
        found = getattr(found, key)
    if isinstance(found, BaseModel):
        raise BadSetting(f"--set {name}: is a table: wanted one of its settings, such as {name}.KEY=VALUE")
    return found
