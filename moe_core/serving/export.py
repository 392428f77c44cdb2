"""A bundle in a folder of its own, which travels: its files, its manifest, and its card."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moe_core.errors import BadSetting
from moe_core.serving.bundle import Bundle
from moe_core.serving.manifest import entries_of, read_manifest
from moe_core.store.files import fsync, temporary_folder, write_text
from moe_core.store.layout import BUNDLE_MANIFEST, CARD


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which gets the name `out` at the end of the block: a killed process leaves nothing there.

    Raises BadSetting where `out` exists, or has no folder to lie in.
    """
    if out.is_symlink() or out.exists():
        raise BadSetting(f"{out} exists: name a folder that does not, or remove it")
    if not out.parent.is_dir():
        raise BadSetting(f"{out.parent} is no folder: make it first")
    with temporary_folder(out.parent) as folder:
        yield folder
        for path in (*folder.rglob("*"), folder):
            fsync(path)
        folder.rename(out)
        fsync(out.parent)


def export_bundle(bundle: Bundle, out: Path, card: str | None = None) -> None:
    """Copies what the manifest names into the new folder `out`, with the card, if any.

    Raises BadSetting as `new_folder`, CorruptArtifact where the copy is not what the manifest names.
    """
    source = bundle.folder
    with new_folder(out) as folder:
        for name in (BUNDLE_MANIFEST, *(entry.file for entry in entries_of(read_manifest(source)).values())):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
        if card is not None:
            write_text(folder / CARD, card)
        Bundle(folder)  # reads every byte of the copy
