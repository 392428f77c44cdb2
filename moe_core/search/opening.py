"""Posts of a study's mixtures, to be looked at: opened by those who hold the mixture itself already."""

from collections.abc import Callable
from pathlib import Path

from moe_core.search.browse import Browser
from moe_core.search.searcher import Searcher
from moe_core.serving.bundle import Bundle
from moe_core.study_file import load_study
from moe_core.workspace import open_study


def posts_of(study_file: Path, memory_bytes: int | None = None) -> Callable[[str, Bundle], Browser]:
    """Opens the posts of a version of the mixture, whose bundle is open, each time as the study is then.

    That raises MissingInput where there is no search index of the version.
    """

    def opened(version: str, bundle: Bundle) -> Browser:
        context = open_study(load_study(study_file), study_file.absolute().parent)
        return Browser(Searcher(context, version, memory_bytes, bundle))

    return opened
