"""Whether every byte of a study's store is the one that was written. Reads all of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moe_core.stages.context import Context
from moe_core.stages.housekeeping import DATA_SETS
from moe_core.store import Artefact


@dataclass(frozen=True)
class Damage:
    """What is wrong, and the folder of the artefact that has to be made again."""

    folder: Path
    why: str


def verify(context: Context) -> Iterator[Damage | Artefact]:
    """Every complete artefact in turn, or what is wrong with it: its files, and the rows that posts point at."""
    from moe_core.stages.table import STAGES

    checked: dict[str, dict[str, bool]] = {name: {} for name in DATA_SETS}
    for name in STAGES:
        for manifest in sorted((context.root / name).rglob("artefact.json")):
            folder = manifest.parent
            if any(part.startswith(".") for part in folder.relative_to(context.root).parts):
                continue
            try:
                artefact = context.store.read(folder)
                assert artefact is not None
                for file in artefact.files:
                    artefact.file(file)
            except ValueError as error:
                yield Damage(folder, str(error))
                continue
            lost = _lost_rows(context, artefact, checked) if name == "posts" else []
            yield Damage(folder, f"{'; '.join(lost)}: delete {folder} and run again") if lost else artefact


def _lost_rows(context: Context, artefact: Artefact, checked: dict[str, dict[str, bool]]) -> list[str]:
    from moe_core.tables import damage, pin_of

    assert artefact.key is not None
    found = []
    for name, said in zip(DATA_SETS, ("accepted", "rejected"), strict=True):
        pin = pin_of(artefact.key, artefact.version)
        found += damage(context.root / name, pin, artefact.key, artefact.metadata[said], checked[name])
    return found
