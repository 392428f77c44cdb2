"""Whose a root is: one study.toml a folder, since what is made lies beside it and two would take turns in it."""

import shlex
from contextlib import suppress
from pathlib import Path

from moe_core.store.files import write_text

OWNER = ".study"  # in the root: name of the file whose study was made there
USUAL = "study.toml"


def check_owner(study_file: Path) -> None:
    """Raises ValueError where the folder is another study file's that is still there."""
    file = study_file.absolute()
    owner = _owner(file.parent)
    if owner and owner != file.name and (file.parent / owner).is_file() and not _same(file, file.parent / owner):
        folder = file.parent.with_name(f"{file.parent.name}-{file.stem}")
        raise ValueError(
            f"{file.parent} is the folder of {owner}, whose posts, networks and publications lie there: give "
            f"{file.name} one of its own, such as mkdir {shlex.quote(str(folder))} && mv {shlex.quote(str(file))} "
            f"{shlex.quote(str(folder / USUAL))}"
        )


def claim(study_file: Path) -> None:
    """Notes whose the folder is, before anything is made in it. Raises ValueError as `check_owner` does."""
    check_owner(study_file)
    file = study_file.absolute()
    if _owner(file.parent) != file.name:
        write_text(file.parent / OWNER, f"{file.name}\n")


def _owner(root: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        name = (root / OWNER).read_text("utf-8").rstrip("\n")
        if name and (root / name).is_file():
            return name
    return USUAL if (root / USUAL).is_file() else ""


def _same(one: Path, other: Path) -> bool:
    with suppress(OSError):
        return one.samefile(other)
    return False
