"""Which mixture is published: `published.json`, a document of the study, a pointer that keeps all decisions about it.

A reader reads it once and opens the bundle, which never changes. Building an artifact publishes nothing; only
a decision in this file does, and each records what it was based on, so that it can be explained and taken back.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from moe_core.errors import BadSetting, CorruptArtifact, MissingInput
from moe_core.serving.folders import bundle_folder, bundles_in, study_at
from moe_core.serving.names import version_of
from moe_core.store import pointer
from moe_core.store.artifact import Artifact
from moe_core.store.documents import Documents, FolderDocuments
from moe_core.store.layout import BUNDLE_MANIFEST, NAMES, Layout
from moe_core.store.protocols import ArtifactStore, open_store
from moe_core.study_file import load_study

FORMAT = "hardmoe publication 2"
UNPUBLISHED = ""  # in place of a version, before the first publication

Action = Literal["published", "refused", "forced", "rolled back"]


@dataclass(frozen=True)
class Decision:
    """One entry of the history."""

    action: Action
    mixture: str  # the version that it is about
    baseline: str  # the version that was published before it, which the mixture was compared with
    published: str  # the version that is published from then on
    why: str
    by: str
    comparison: str = ""  # version of the artifact `published` that compared them; none where a person decided
    scores: Mapping[str, Any] | None = None  # of both on the same validation posts, and the margin
    at: str = ""  # UTC, ISO 8601


@dataclass(frozen=True)
class PublicationLog:
    """All decisions, the oldest first."""

    history: tuple[Decision, ...] = ()

    @property
    def published(self) -> str:
        """The version that is published, or UNPUBLISHED."""
        return self.history[-1].published if self.history else UNPUBLISHED

    @property
    def previous(self) -> str:
        """The version that a rollback reverts to, or UNPUBLISHED."""
        stack = self._stack()
        return stack[-2] if len(stack) > 1 else UNPUBLISHED

    def _stack(self) -> list[str]:
        """Versions published one after the other, without those that were rolled back."""
        versions: list[str] = []
        for decision in self.history:
            if decision.action in ("published", "forced"):
                versions.append(decision.published)
            elif decision.action == "rolled back":
                versions.pop()
        return versions

    def last(self, mixture: str) -> Decision | None:
        """The latest decision about a mixture."""
        return next((d for d in reversed(self.history) if d.mixture == mixture), None)

    def withdrawn(self, mixture: str) -> Decision | None:
        """The rollback of a mixture, unless it was published again since."""
        for decision in reversed(self.history):
            if decision.mixture == mixture and decision.action != "refused":
                return decision if decision.action == "rolled back" else None
        return None

    def superseded(self, mixture: str) -> bool:
        """Whether it was published, and then a run, not a person, published another in its place."""
        last = self.last(mixture)
        now = next((d for d in reversed(self.history) if d.action != "refused"), None)
        if last is None or now is None or last.action not in ("published", "forced") or self.published == mixture:
            return False
        return now.action == "published" and bool(now.comparison)

    def adding(self, decision: Decision) -> "PublicationLog":
        """With one decision more, made now."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return PublicationLog((*self.history, replace(decision, at=now)))

    def rolled_back(self, by: str) -> "PublicationLog":
        """With the latest publication rolled back. Raises MissingInput where none was before it."""
        if not self.previous:
            raise MissingInput(
                f"no mixture was published before {self.published or 'this'}: there is nothing to roll back to",
                "published",
            )
        why = f"taken back by hand; {self.previous} is published again"
        return self.adding(Decision("rolled back", self.published, self.published, self.previous, why, by))


def read_log(documents: Documents) -> PublicationLog:
    """All decisions of a study; none where there is no log. Raises CorruptArtifact for a damaged one, which stays."""
    try:
        return _parsed(documents, documents.read(NAMES.publication))
    except OSError as error:
        raise _damaged(documents, f"{documents.where(NAMES.publication)} is damaged ({error})") from None


def change(documents: Documents, decide: Callable[[PublicationLog], PublicationLog]) -> PublicationLog:
    """Replaces the log by what `decide` makes of it, durably; nobody else's decision is lost.

    Where another process decides meanwhile, `decide` is called again with what that one wrote.
    """
    log, made = PublicationLog(), list[Decision]()

    def replaced(before: bytes | None) -> bytes | None:
        nonlocal log, made
        log = _parsed(documents, before)
        if made and all(decision in log.history for decision in made):
            return before
        after = decide(log)
        made = list(after.history[len(log.history) :])
        log = after
        if not made:
            return before
        history = [asdict(decision) for decision in log.history]
        return pointer.text({"format": FORMAT, "published": log.published, "history": history})

    documents.update(NAMES.publication, replaced)
    return log


def _parsed(documents: Documents, data: bytes | None) -> PublicationLog:
    """Raises CorruptArtifact."""
    where = documents.where(NAMES.publication)
    try:
        document = pointer.parsed(documents, NAMES.publication, data)
        if document is None:
            return PublicationLog()
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}, this hardmoe reads {FORMAT!r}")
        return PublicationLog(tuple(Decision(**decision) for decision in document["history"]))
    except (CorruptArtifact, ValueError, KeyError, TypeError, AttributeError) as error:
        why = str(error) if isinstance(error, CorruptArtifact) else f"{where} is damaged ({error})"
        raise _damaged(documents, why) from None


def _damaged(documents: Documents, why: str) -> CorruptArtifact:
    return CorruptArtifact(
        f"{why}: restore it from a backup, or move it away and run `hardmoe publish --version VERSION --force`; "
        "earlier comparisons are in the artifacts of `published`",
        documents.where(NAMES.publication),
    )


def bundle_at(path: Path, version: str | None = None) -> Path | Artifact:
    """The mixture that a path names, as `Bundle` takes it: what `bundle_folder` takes; or the folder or study.toml of a
    study, whose mixture is that of `version`, or of its beginning, or the published one.

    Raises MissingInput where it names none, BadSetting where it names several.
    """
    study = study_at(path)
    if study is None and version is not None:
        raise BadSetting(f"--version goes with a study: {path} is none, it has no study.toml")
    if study is None:
        return bundle_folder(path)
    store = open_store(load_study(study), root=study.parent)
    if store.place:
        return mixture_in(store, version)
    if version is None:
        return published_bundle(study.parent)
    layout = Layout(study.parent)
    known, where = bundles_in(layout.asset("mixture")), f"mixture in {study.parent}"
    return layout.artifact("mixture", None, version_of(FolderDocuments(study.parent), version, known, where))


def mixture_in(store: ArtifactStore, version: str | None = None) -> Artifact:
    """The published mixture of a store, or that of a name, a version or its beginning. Raises MissingInput where it is
    not there, BadSetting for a version that is none."""
    if version is None:
        version = read_log(store.documents).published
        if not version:
            raise MissingInput(
                f"no mixture in {store.uri} is published: `hardmoe run`, or `hardmoe publish`, publishes one",
                "published",
            )
    else:
        known = [each for _, each in store.listed("mixture")]
        version = version_of(store.documents, version, known, f"mixture in {store.uri}")
    mixture = store.get("mixture", None, version)
    if mixture is None:
        raise MissingInput(
            f"the published mixture {version} is not in {store.uri}: `hardmoe publish --rollback`", "mixture"
        )
    return mixture


def published_bundle(root: Path) -> Path:
    """Folder of the published mixture. Raises MissingInput where nothing is published, or its folder is gone."""
    layout, version = Layout(root), read_log(FolderDocuments(root)).published
    if not version:
        raise MissingInput(
            f"no mixture of {layout.study_file} is published: `hardmoe run`, or `hardmoe publish`, publishes one",
            "published",
        )
    folder = layout.artifact("mixture", None, version)
    if not (folder / BUNDLE_MANIFEST).is_file():
        raise MissingInput(
            f"the published mixture {version} is not at {folder}: restore the folder, or `hardmoe publish --study "
            f"{layout.study_file} --rollback`",
            "mixture",
        )
    return folder
