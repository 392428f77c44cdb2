"""Which mixture is published: `published.json` in the study's root, replaced in one move, with all that was decided.

A reader reads it once and opens the bundle's folder, which never changes. Nothing is published by writing an artifact;
only a decision in this file does it, and each keeps what it was made on, so that it can be taken back and explained.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from moe_core.store.artifact import full_version
from moe_core.store.files import fsync, write_text
from moe_core.store.hashing import with_checksum, without_checksum
from moe_core.store.locks import exclusive

FILE = "published.json"
MANIFEST = "manifest.json"  # of a bundle
FORMAT = "hardmoe publication 1"
NOTHING = ""  # published before the first

Action = Literal["published", "refused", "forced", "rolled back"]


@dataclass(frozen=True)
class Decision:
    """One entry of the history."""

    action: Action
    mixture: str  # the version that it is about
    against: str  # the version that was published when it was made
    published: str  # the version that is published from then on
    why: str
    by: str
    verdict: str = ""  # version of the artifact `published` that compared them; none where a person decided
    scores: Mapping[str, Any] | None = None  # of both on the same validation posts, and the margin
    at: str = ""  # UTC, ISO 8601


@dataclass(frozen=True)
class Book:
    """All decisions, the oldest first."""

    history: tuple[Decision, ...] = ()

    @property
    def published(self) -> str:
        """The version that is published, or NOTHING."""
        return self.history[-1].published if self.history else NOTHING

    @property
    def previous(self) -> str:
        """The version that a rollback goes back to, or NOTHING."""
        stack = self._stack()
        return stack[-2] if len(stack) > 1 else NOTHING

    def _stack(self) -> list[str]:
        """Versions published one after the other, without those that were taken back."""
        found: list[str] = []
        for decision in self.history:
            if decision.action in ("published", "forced"):
                found.append(decision.published)
            elif decision.action == "rolled back":
                found.pop()
        return found

    def last(self, mixture: str) -> Decision | None:
        """The latest decision about a mixture."""
        return next((d for d in reversed(self.history) if d.mixture == mixture), None)

    def withdrawn(self, mixture: str) -> Decision | None:
        """The rollback that took a mixture back, unless it was published again since."""
        for decision in reversed(self.history):
            if decision.mixture == mixture and decision.action != "refused":
                return decision if decision.action == "rolled back" else None
        return None

    def superseded(self, mixture: str) -> bool:
        """Whether it was published, and then a run published another in its place: no person did."""
        last = self.last(mixture)
        now = next((d for d in reversed(self.history) if d.action != "refused"), None)
        if last is None or now is None or last.action not in ("published", "forced") or self.published == mixture:
            return False
        return now.action == "published" and bool(now.verdict)

    def with_one(self, decision: Decision) -> "Book":
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Book((*self.history, replace(decision, at=now)))

    def rolled_back(self, by: str) -> "Book":
        """With the latest publication taken back. Raises ValueError where there is none before it."""
        if not self.previous:
            raise ValueError(
                f"no mixture was published before {self.published or 'this'}: there is nothing to roll back to"
            )
        why = f"taken back by hand; {self.previous} is published again"
        return self.with_one(Decision("rolled back", self.published, self.published, self.previous, why, by))


def load(root: Path) -> Book:
    """Raises ValueError for a file that is not one; it is left as it is."""
    path = root / FILE
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return Book()
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from None
    try:
        said = json.loads(text)
        if said["format"] != FORMAT:
            raise ValueError(f"format {said['format']!r}, this hardmoe reads {FORMAT!r}")
        said = without_checksum(said)
        return Book(tuple(Decision(**decision) for decision in said["history"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} is damaged ({error}): restore it from a backup, or move it away and say `hardmoe publish --version "
        f"VERSION --force`; verdicts of before are in {path.parent / 'published'}"
    )


@contextmanager
def writing(root: Path) -> Iterator[Book]:
    """The book as it is while nobody else changes it; `save` it before the end, or leave it."""
    with exclusive(root / ".publishing.lock"):
        yield load(root)


def save(root: Path, book: Book) -> None:
    """Replaces the file in one move, on the disk before this returns. For those within `writing`."""
    said = {"format": FORMAT, "published": book.published, "history": [asdict(d) for d in book.history]}
    write_text(root / FILE, json.dumps(with_checksum(said), indent=1))
    fsync(root)


def bundle_at(path: Path, version: str | None = None) -> Path:
    """Folder of the mixture that a path names: its folder or manifest.json, also with only the beginning of its version
    as in STUDY/mixture/1f0c; or the folder or study.toml of a study, whose mixture is that of `version`, or of its
    beginning, or the published one.

    Raises ValueError where it names none, or several.
    """
    study = path / "study.toml" if path.is_dir() else path
    if study.suffix == ".toml" and study.is_file():
        if version is None:
            return published_bundle(study.parent)
        mixtures = study.parent / "mixture"
        return mixtures / full_version(version, _bundles_in(mixtures), f"mixture in {study.parent}")
    if version is not None:
        raise ValueError(f"--version goes with a study: {path} is none, it has no study.toml")
    if path.name == MANIFEST and not path.is_dir():
        path = path.parent
    if (path / MANIFEST).is_file():
        return path
    if not path.exists() and (there := _bundles_in(path.parent)):
        return path.parent / full_version(path.name, there, f"mixture in {path.parent}")
    if there := _bundles_in(path):
        raise ValueError(f"{path} holds {len(there)} mixtures: name one of them, such as {path / there[0]}")
    raise ValueError(
        f"no bundle at {path}: wanted a study's folder or study.toml, or a mixture's folder or manifest.json "
        "(STUDY/mixture/VERSION)"
    )


def _bundles_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith(".") and (p / MANIFEST).is_file())


def published_bundle(root: Path) -> Path:
    """Folder of the published mixture. Raises ValueError where nothing is published, or its folder is gone."""
    version = load(root).published
    study = root / "study.toml"
    if not version:
        raise ValueError(f"no mixture of {study} is published: `hardmoe run`, or `hardmoe publish`, publishes one")
    folder = root / "mixture" / version
    if not (folder / MANIFEST).is_file():
        raise ValueError(
            f"the published mixture {version} is not at {folder}: restore the folder, or `hardmoe publish --study "
            f"{study} --rollback`"
        )
    return folder
