"""Names of every file and folder under a study's root: the only place that joins their paths.

    <root>/study.toml, .study               the study, and which study file the root belongs to
    <root>/<asset>[/<key>]/<version>/       artifacts; beside them, hidden: work folders and locks of builds
    <root>/<asset>/current.<line>.json      pointers: the current trunk and partition
    <root>/<asset>/request.json             requests: train the trunk again, fit the partition again
    <root>/posts.lance, rejects.lance       rows of all shards
    <root>/published.json, takedowns.parquet
    <root>/dagster, logs, .progress, .runs, .arrays, .sources, .scratch, .content_hashes.json

Names are hidden (".") where a user has nothing to read in them.
"""

import os
from pathlib import Path, PurePath

MANIFEST = "artifact.json"  # of an artifact: written last, so that its folder is complete
BUNDLE_MANIFEST = "manifest.json"  # of a bundle
CARD = "MODEL_CARD.md"  # beside it: what a person should know of the mixture
STUDY = "study.toml"
DAGSTER_SETTINGS = "dagster.yaml"
WORK, LOCK = ".work-", ".lock-"  # before a version


class Layout:
    """Paths under `root`. Joins names and reads nothing, but for methods that say that they list."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.study_file = root / STUDY  # the usual name of the study's settings; a user may have given them another
        self.owner = root / ".study"  # the name of the study file that the root belongs to

        self.posts_table, self.rejects_table = root / "posts.lance", root / "rejects.lance"
        self.tables = self.posts_table, self.rejects_table  # replaced shard by shard, always both
        self.content_hashes = root / ".content_hashes.json"  # of the source's files: an unchanged one is not read again
        self.arrays = root / ".arrays"  # that the processes of a machine map, made again where they are gone
        self.source_cache = root / ".sources"  # what readers of a source keep, such as indices of tars

        self.in_use = root / ".in-use.lock"  # of the whole store: shared while building, exclusive while deleting
        self.run_request = root / "run-request.json"  # what Dagster's jobs ask the sensor to launch
        self.publication = root / "published.json"  # the mixture that answers, with all decisions about it
        self.mixture_names = root / "mixture_names.json"  # and notes, that people gave to mixtures
        self.publication_lock = root / ".publishing.lock"
        self.takedowns = root / "takedowns.parquet"  # salted hashes of what was taken down
        self.takedowns_lock = root / ".takedowns.lock"
        self.documents_lock = root / ".documents.lock"  # while another document is replaced

        self.scratch = root / ".scratch"  # what processes write that is no artifact yet
        self.progress_folder = root / ".progress"
        self.leases = root / ".runs"  # a lock for each run under way, which other machines see
        self.logs = root / "logs"
        self.dagster_home = root / "dagster"  # Dagster's instance where DAGSTER_HOME names no other
        self.report_page = root / "report" / "table.html"  # shows the latest table

    @property
    def used_dagster_home(self) -> Path:
        """Dagster's instance: the folder that DAGSTER_HOME names, or the study's own."""
        return Path(os.environ.get("DAGSTER_HOME") or self.dagster_home)

    @staticmethod
    def study_lock(study_file: Path) -> Path:
        """Held while a command changes settings."""
        return study_file.with_name(f".{study_file.name}.lock")

    def asset(self, asset: str) -> Path:
        return self.root / asset

    def partition(self, asset: str, key: str | None) -> Path:
        """Where the versions of an asset's partition lie."""
        return self.root / asset if key is None else self.root / asset / key

    def artifact(self, asset: str, key: str | None, version: str) -> Path:
        return self.partition(asset, key) / version

    def manifest(self, asset: str, key: str | None, version: str) -> Path:
        """Exists once the artifact is complete."""
        return self.artifact(asset, key, version) / MANIFEST

    def work(self, asset: str, key: str | None, version: str) -> Path:
        """Checkpoints of an unfinished artifact."""
        return self.partition(asset, key) / f"{WORK}{version}"

    def build_lock(self, asset: str, key: str | None, version: str) -> Path:
        """Held by the process that builds an artifact, which is named in it."""
        return self.partition(asset, key) / f"{LOCK}{version}"

    def current(self, asset: str, line: str) -> Path:
        """Pointer to the current artifact of an asset; `line` is a hash of the settings that it belongs to."""
        return self.root / asset / f"current.{line}.json"

    def request(self, asset: str) -> Path:
        """Pointer to the artifact that a user asked to replace."""
        return self.root / asset / "request.json"

    def document(self, name: PurePath) -> Path:
        """Where a document lies whose name is one of `NAMES`."""
        return self.root / name

    def document_lock(self, name: PurePath) -> Path:
        """Held while a document is replaced."""
        locks = {NAMES.publication: self.publication_lock, NAMES.takedowns: self.takedowns_lock}
        return locks.get(Path(name), self.documents_lock)

    def progress(self, asset: str, key: str | None) -> Path:
        """What a running step reports last."""
        return self.progress_folder / (f"{asset}.json" if key is None else f"{asset}.{key}.json")

    def all_progress(self) -> list[tuple[str, str | None, Path]]:
        """Lists (asset, key, file) of the reports of steps."""
        names = ((path.name.removesuffix(".json").partition("."), path) for path in self.progress_folder.glob("*.json"))
        return [(asset, key or None, path) for (asset, _, key), path in names]

    def lease(self, run: str) -> Path:
        """Held by the process that carries out a Dagster run, for as long as it does."""
        return self.leases / run

    def log(self, asset: str, key: str | None) -> Path:
        """Output of the process that builds an artifact."""
        return self.logs / (f"{asset}.log" if key is None else f"{asset}.{key}.log")


NAMES = Layout(Path())  # relative to a root: names of documents, and of what lies in a bucket
