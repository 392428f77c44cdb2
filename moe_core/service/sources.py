"""Where the mixture that answers comes from: a study, whose publication log is followed, or one bundle."""

from pathlib import Path

from moe_core.errors import MissingInput
from moe_core.service.following import Source
from moe_core.serving.bundle import Bundle
from moe_core.serving.publication import bundle_at, read_log
from moe_core.store.layout import NAMES
from moe_core.store.protocols import open_store
from moe_core.study_file import load_study


def published_of(study_file: Path, expert_bytes: int | None) -> Source:
    """The published mixture of a study, in its folder or its bucket. Raises BadSetting for a bad study.toml."""
    documents = open_store(load_study(study_file), root=study_file.absolute().parent).documents

    def stamp() -> str:
        return documents.stamps([NAMES.publication])[0]

    def published() -> str:
        version = read_log(documents).published
        if not version:
            raise MissingInput(
                f"no mixture of {study_file} is published: `hardmoe run`, or `hardmoe publish`, publishes one",
                "published",
            )
        return version

    return Source(stamp, published, lambda version: Bundle(bundle_at(study_file, version), expert_bytes))
