"""Where a bundle lies: the folder of a mixture, by its path or the beginning of its version."""

from pathlib import Path

from moe_core.errors import BadSetting, MissingInput
from moe_core.store.artifact import full_version
from moe_core.store.files import folders_in
from moe_core.store.layout import BUNDLE_MANIFEST, Layout


def study_at(path: Path) -> Path | None:
    """The study.toml that a path names, or its folder's; None for a path that names no study."""
    study = Layout(path).study_file if path.is_dir() else path
    return study if study.suffix == ".toml" and study.is_file() else None


def bundle_folder(path: Path) -> Path:
    """The folder of a mixture: itself or its manifest.json, also with only the beginning of its version, as in
    STUDY/mixture/1f0c.

    Raises MissingInput where the path names none, BadSetting where it names several.
    """
    if path.name == BUNDLE_MANIFEST and not path.is_dir():
        path = path.parent
    if (path / BUNDLE_MANIFEST).is_file():
        return path
    if not path.exists() and (versions := bundles_in(path.parent)):
        return path.with_name(full_version(path.name, versions, f"mixture in {path.parent}"))
    if versions := bundles_in(path):
        raise BadSetting(f"{path} holds {len(versions)} mixtures: name one of them, such as {path / versions[0]}")
    raise MissingInput(
        f"no bundle at {path}: wanted a study's folder or study.toml, or a mixture's folder or manifest.json "
        "(STUDY/mixture/VERSION)",
        "mixture",
    )


def bundles_in(folder: Path) -> list[str]:
    """Names of the mixtures in a folder."""
    return [bundle.name for bundle in folders_in(folder) if (bundle / BUNDLE_MANIFEST).is_file()]
