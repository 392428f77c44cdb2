"""study.toml: reads it, with one line a mistake; writes it with what each setting does; changes it by `--set`.

What is made with other settings is another version, so a setting that held for one command alone would leave artifacts
that the study calls stale. `--set table.key=value` is therefore written to study.toml, with its comments kept, where
`hardmoe status` and the next run see it.
"""

import os
import reprlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import BaseModel, ValidationError
from tomlkit.exceptions import TOMLKitError

from moe_core.errors import BadSetting
from moe_core.settings import Study
from moe_core.store.files import write_text
from moe_core.text import refuse_bytes, shown

MAX_BYTES = 1 << 20  # of a study.toml
MAX_MISTAKES = 8  # named in an error
PATHS = {  # of settings
    "source": ("uri", "images"),
    "data": ("stop_tags", "synonyms"),
    "trunk_setup": ("start",),
    "evaluation": ("labels_file",),
}


def load_study(path: Path) -> Study:
    """Reads study.toml. Raises BadSetting with one line a mistake: where, what came, what to do."""
    refuse_bytes(path.absolute(), "the study")
    if path.is_dir():
        raise BadSetting(f"{path} is a folder: wanted its file, {path}/study.toml")
    if not path.is_file():
        raise BadSetting(
            f"no study at {path}: name its folder or study.toml with --study, or write one with `hardmoe init DIR "
            "--source ...`"
        )
    if path.stat().st_size > MAX_BYTES:
        raise BadSetting(f"{path} has {path.stat().st_size:,} bytes, wanted a study.toml of at most {MAX_BYTES:,}")
    return study_of(text_of(path), path)


def text_of(path: Path) -> str:
    """The text of a study.toml, without the mark that some editors put before it. Raises BadSetting for other bytes."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSetting(f"{path} is not valid TOML: {error}") from None


def study_of(text: str, path: Path) -> Study:
    """The study that the text of a study.toml says; errors name `path`, and relative paths begin in its folder."""
    try:
        return _with_absolute_paths(Study.model_validate(tomllib.loads(text)), path.absolute().parent)
    except ValidationError as error:
        places = {e["loc"][:-1] for e in error.errors()}
        # a list whose items are wrong is too short only without them
        mistakes = [_explain(e) for e in error.errors() if e["type"] != "too_short" or e["loc"] not in places]
        more = [f"and {len(mistakes) - MAX_MISTAKES} more"] if len(mistakes) > MAX_MISTAKES else []
        raise BadSetting(f"{path}: " + "; ".join(mistakes[:MAX_MISTAKES] + more)) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError of Python's
        raise BadSetting(f"{path} is not valid TOML: {error}") from None


def _with_absolute_paths(study: Study, folder: Path) -> Study:
    """The same files wherever the process stands: the daemon has another working folder than a shell."""
    found = {}
    for table, settings in PATHS.items():
        values = {name: getattr(getattr(study, table), name) for name in settings}
        local = {name: os.path.join(folder, value) for name, value in values.items() if value and "://" not in value}
        found[table] = getattr(study, table).model_copy(update=local)
    return study.model_copy(update=found)


_SHORT = reprlib.Repr()  # of values however deep
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 200
_SHORT.maxlist = 20


def _explain(error: object) -> str:
    assert isinstance(error, dict)
    parts = [str(part) for part in error["loc"]]
    where = shown(".".join(p for p in parts if p != "constrained-float" and not p.startswith("literal[")), 80)
    value = shown(_SHORT.repr(error["input"]), 80)
    why = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"unknown setting '{where}': remove it, or see docs/reference/settings.md for the names"
    if error["type"] == "model_type":
        return f"{where} = {value}: wanted a table, [{where}]"
    if error["type"] == "tuple_type":
        return f"{where} = {value}: wanted a list, such as [8, 16]"
    if isinstance(error["input"], dict):  # of a whole table, or the study: what is wrong says which settings
        return f"[{where}] {why}" if where else why
    return f"{where} = {value}: {why}"


def dump_study(study: Study) -> str:
    """study.toml with every setting and its description as a comment, so that the file explains itself."""
    document = tomlkit.document()
    document.add(tomlkit.comment("A hardmoe study. Unknown keys are refused; every key may be left out."))
    tables = []
    for key, value in study:
        if not isinstance(value, BaseModel):
            document.add(key, value)
            continue
        table = tomlkit.table()
        for name, field in type(value).model_fields.items():
            entry = getattr(value, name)
            item = tomlkit.item(list(entry) if isinstance(entry, tuple) else entry)
            table.add(name, item.comment(field.description or ""))
        tables.append((key, table))
    for key, table in tables:
        document.add(tomlkit.nl())
        document.add(key, table)
    return tomlkit.dumps(document)


@dataclass(frozen=True)
class Overridden:
    """study.toml with changes that are not written yet."""

    path: Path
    text: str
    study: Study
    changes: list[str]  # such as expert_training.epochs 9.0 -> 3.0; only of settings whose value is another

    def write(self) -> None:
        if self.changes:
            write_text(self.path, self.text)


def override(path: Path, assignments: Sequence[str]) -> Overridden:
    """Raises BadSetting for what is not table.key=value, for an unknown key and for a value that is refused."""
    before = load_study(path)
    document = tomlkit.parse(text_of(path))
    names = [_set(document, assignment) for assignment in assignments]
    text = tomlkit.dumps(document)
    after = study_of(text, path)
    values = {name: (_value(before, name), _value(after, name)) for name in names}
    changes = [f"{name} {old!r} -> {new!r}" for name, (old, new) in values.items() if old != new]
    return Overridden(path, text, after, changes)


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
