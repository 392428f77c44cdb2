"""Formats that a source may have, a row each: settings, `--format`, the guess of a format and the docs follow from it.

A new format is a row here and a module beside this one with its Reader (docs/extending.md). Nothing is imported here,
so that settings can be checked without the libraries of the readers.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """What is known of a format before any data are opened; `shards` to `tags` are columns of the docs' table."""

    name: str
    what: str  # what source.uri may be
    shards: str
    id: str
    image: str
    tags: str
    suffixes: tuple[str, ...] = ()  # of its files, the usual one first
    told_by_suffix: bool = True  # a file with such a suffix is of this format
    module: str = ""  # of this folder, where it has another name
    marker: str = ""  # beginning of a file's name that tells the format of its folder


# Where names do not tell the format, the first whose reader recognizes the source: COCO may lie in class folders.
FORMATS = {
    format.name: format
    for format in (
        Format(
            "parquet",
            "a Parquet file, a folder of them (*.parquet), a glob or a URI",
            "each file",
            "column",
            "column: binary; struct of `bytes`, `path` or both; or text, a file name",
            "column: list of strings, or text",
            (".parquet", ".pq", ".parq"),
        ),
        Format(
            "arrow",
            "an Arrow file, a folder of them (*.arrow, *.feather, *.ipc), a glob or a URI",
            "each file (or stream)",
            "as parquet",
            "as parquet",
            "as parquet",
            (".arrow", ".feather", ".ipc"),
            module="parquet",
        ),
        Format(
            "lance",
            "a Lance table, a folder of them (*.lance) or the URI of one",
            "each table",
            "as parquet",
            "as parquet",
            "as parquet",
            (".lance",),
            module="lance_table",
        ),
        Format(
            "folder",
            "a folder of images with a CSV, TSV or JSON-lines table, or that table",
            "each `.csv`, `.tsv`, `.jsonl`, `.ndjson` (`source.table`, which may be a glob)",
            "column, else the file name",
            "file named in a column, in the folder or beside the table",
            "column: JSON list, or text",
            (".csv", ".tsv", ".jsonl", ".ndjson"),
        ),
        Format(
            "webdataset",
            "a tar of samples, a folder of them (*.tar, *.tar.gz), a glob or a URI",
            "each tar",
            "member's name up to the first dot of its last part, or more of it (below)",
            "a picture (below)",
            "`.json`: list or field; else its `caption`'s `#words`; else `.txt`; else `.cls`",
            (".tar", ".tar.gz", ".tgz"),
        ),
        Format(
            "coco",
            "a COCO JSON file (with images and annotations), a folder of them or a glob",
            "each split",
            "`file_name` behind the split",
            "files that it names",
            "categories, then words of captions",
            (".json", ".coco.json"),
            told_by_suffix=False,
        ),
        Format(
            "imagefolder",
            "a folder of class folders with images (cat/1.jpg), or of train/, val/ and test/ with class folders",
            "each split, or one",
            "path in the folder",
            "files",
            "names of the folders above it",
        ),
        Format(
            "yfcc",
            "a YFCC100M metadata file, a folder of them (yfcc100m_dataset*), or a glob; plain, .bz2 or .gz",
            "each file",
            "photo id",
            "in `source.images`",
            "user tags, then machine tags",
            (".bz2", ".gz", ".tsv", ".txt", ""),
            told_by_suffix=False,
            marker="yfcc100m_dataset",
        ),
        Format(
            "synthetic",
            "the word synthetic, for posts that a seed makes",
            "`source.shards` of `source.posts`",
            "number",
            "scenes of simple shapes",
            "names of scene and shape, some wrong or missing",
        ),
    )
}
