"""The study that this code location serves: HARDMOE_STUDY names its study.toml or folder; without it, the demo's."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import dagster as dg

from moe_core.recipes import demo
from moe_core.settings import Study
from moe_core.store.files import write_text
from moe_core.store.layout import Layout
from moe_core.study_file import dump_study, load_study

OWNERS = ["team:hardmoe"]
STUDY = "hardmoe/study"  # tag of a run: one instance may serve several studies
DEFAULT = Path("studies/demo/study.toml")


@cache
def study_file() -> Path:
    path = Path(os.environ.get("HARDMOE_STUDY") or DEFAULT).absolute()
    return Layout(path).study_file if path.is_dir() else path


@cache
def study() -> Study:
    """Raises BadSetting for a study.toml that is missing or has a mistake."""
    if not study_file().exists() and not os.environ.get("HARDMOE_STUDY"):
        return demo()
    return load_study(study_file())


def root() -> Path:
    """The store's root: the folder of study.toml."""
    folder = study_file().parent
    if not study_file().exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(study_file(), dump_study(study()))
    return folder


# Partition sets belong to the Dagster instance, which several studies may share: hence the study's name in theirs.
def shards() -> dg.DynamicPartitionsDefinition:
    """One a shard of the source."""
    return dg.DynamicPartitionsDefinition(name=f"{study().name}_shards")


def experts() -> dg.DynamicPartitionsDefinition:
    """One an expert of the partition."""
    return dg.DynamicPartitionsDefinition(name=f"{study().name}_experts")


def project_keys(instance: dg.DagsterInstance, study: str, shards: Sequence[str], experts: Sequence[str]) -> None:
    """Makes the instance's partition keys those of a study: the store is the truth, the keys only show it."""
    for name, keys in ((f"{study}_shards", shards), (f"{study}_experts", experts)):
        known = set(instance.get_dynamic_partitions(name))
        if new := [key for key in keys if key not in known]:
            instance.add_dynamic_partitions(name, new)
        for gone in known - set(keys):
            instance.delete_dynamic_partition(name, gone)


def key_of(stage: str) -> dg.AssetKey:
    """Key of a stage's asset, in an instance that several studies may share."""
    return dg.AssetKey([part for part in (study().asset_prefix, stage) if part])
