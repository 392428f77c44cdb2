"""Whose a root is: one study file a folder, since its artifacts lie beside it and two studies would mix theirs."""

import shlex
from contextlib import suppress
from pathlib import Path

from moe_core.errors import BadSetting
from moe_core.store.files import write_text
from moe_core.store.layout import STUDY, Layout


def check_owner(study_file: Path) -> None:
    """Raises BadSetting where the folder is another study file's that is still there."""
    file = study_file.absolute()
    owner = _owner(file.parent)
    if owner and owner != file.name and (file.parent / owner).is_file() and not _same(file, file.parent / owner):
        folder = file.parent.with_name(f"{file.parent.name}-{file.stem}")
        raise BadSetting(
            f"{file.parent} is the folder of {owner}, whose posts, networks and publications lie there: give "
            f"{file.name} one of its own, such as mkdir {shlex.quote(str(folder))} && mv {shlex.quote(str(file))} "
            f"{shlex.quote(str(folder / STUDY))}"
        )


def claim(study_file: Path) -> None:
    """Notes whose the folder is, before anything is written into it. Raises BadSetting as `check_owner` does."""
    check_owner(study_file)
    file = study_file.absolute()
    if _owner(file.parent) != file.name:
        write_text(Layout(file.parent).owner, f"{file.name}\n")


def _owner(root: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        name = Layout(root).owner.read_text("utf-8").rstrip("\n")
        if name and (root / name).is_file():
            return name
    return STUDY if Layout(root).study_file.is_file() else ""


def _same(file: Path, other: Path) -> bool:
    with suppress(OSError):
        return file.samefile(other)
    return False
