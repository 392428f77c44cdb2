"""Names and notes that people give to mixtures: `mixture_names.json`, a document of the study."""

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace

from moe_core.errors import BadSetting, CorruptArtifact
from moe_core.store import pointer
from moe_core.store.artifact import full_version
from moe_core.store.documents import Documents
from moe_core.store.layout import NAMES
from moe_core.text import shown

FORMAT = "hardmoe mixture names 1"
NAME = re.compile(r"[A-Za-z][\w.-]{0,59}")
VERSION = re.compile(r"[0-9a-f]+")  # what a name may not look like
NOTE_CHARACTERS = 2000


@dataclass(frozen=True)
class Label:
    """What people call a mixture; empty where nobody said."""

    name: str = ""
    note: str = ""


def read_labels(documents: Documents) -> dict[str, Label]:
    """By version. Raises CorruptArtifact for a damaged document, which stays."""
    return _parsed(documents, documents.read(NAMES.mixture_names))


def label(documents: Documents, version: str, name: str | None = None, note: str | None = None) -> Label:
    """Gives a mixture a name, a note or both; an empty one takes it away. None leaves it as it is.

    Raises BadSetting for a name that another mixture has, or that is none.
    """
    if name and (not NAME.fullmatch(name) or VERSION.fullmatch(name)):
        raise BadSetting(
            f"name {shown(name)}: wanted up to 60 letters, digits, dots, - and _ that begin with a letter, and not "
            "what could be the beginning of a version (only 0-9 and a-f)"
        )
    if note and len(note) > NOTE_CHARACTERS:
        raise BadSetting(f"a note of {len(note):,} characters: wanted at most {NOTE_CHARACTERS:,}")
    given = {key: value for key, value in (("name", name), ("note", note)) if value is not None}
    found = Label()

    def changed(before: bytes | None) -> bytes | None:
        nonlocal found
        labels = _parsed(documents, before)
        if owner := next((v for v, other in labels.items() if name and other.name == name and v != version), None):
            raise BadSetting(f"name {shown(name)}: mixture {owner} has it: choose another, or take it away there first")
        found = replace(labels.get(version, Label()), **given)
        labels[version] = found
        kept = {v: asdict(each) for v, each in sorted(labels.items()) if each != Label()}
        return pointer.text({"format": FORMAT, "mixtures": kept})

    documents.update(NAMES.mixture_names, changed)
    return found


def version_of(documents: Documents, wanted: str, versions: Collection[str], where: str) -> str:
    """The mixture of this name, or whose version begins so. Raises BadSetting where it is none or several."""
    named = {each.name: version for version, each in read_labels(documents).items() if each.name}
    return named[wanted] if named.get(wanted) in versions else full_version(wanted, versions, where)


def _parsed(documents: Documents, data: bytes | None) -> dict[str, Label]:
    document = pointer.parsed(documents, NAMES.mixture_names, data)
    if document is None:
        return {}
    try:
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}, this hardmoe reads {FORMAT!r}")
        mixtures = document["mixtures"]
        if not isinstance(mixtures, Mapping):
            raise ValueError("no mixtures")
        return {version: Label(**each) for version, each in mixtures.items()}
    except (ValueError, KeyError, TypeError) as error:
        where = documents.where(NAMES.mixture_names)
        raise CorruptArtifact(
            f"{where} is damaged ({error}): restore it from a backup, or move it away; only names and notes are in it",
            where,
        ) from None
