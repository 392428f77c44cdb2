"""Lance data sets: posts that are replaced a shard at a time, and vectors written once. Only this package uses lance.

A fragment holds rows of one shard only and never has a row deleted: a shard is written again and its fragments are
swapped in one commit, so a killed writer leaves nothing visible. A Lance tag names the version that holds the rows of
one artifact; what a tag needs is never cleaned up.

Fragments are 65,536 rows (or 1 GiB): best or near it at taking random rows and at scanning JPEGs, and at taking random
rows of raw pixels (docs/explanation/performance.md has the figures, benchmarks/fragment_size.py makes them).
"""

from moe_core.tables.cleaning import Freed, clean, release, search
from moe_core.tables.foreign import TableInfo, scan_table, table_info
from moe_core.tables.lance_tags import advance_lance_tags, delete_lance_tag, lance_tag_of, lance_tags, parse_lance_tag
from moe_core.tables.memory import copied
from moe_core.tables.reading import count_rows, read_positions, read_rows, scan_rows, take_rows
from moe_core.tables.shards import Located, gather, locate, replace_rows, rewrite, scattered, shards_in, values_in
from moe_core.tables.vectors import ids_in, vectors_in, write_vectors
from moe_core.tables.versions import damage

__all__ = [
    "Freed",
    "Located",
    "TableInfo",
    "advance_lance_tags",
    "clean",
    "copied",
    "count_rows",
    "damage",
    "delete_lance_tag",
    "gather",
    "ids_in",
    "lance_tag_of",
    "lance_tags",
    "locate",
    "parse_lance_tag",
    "read_positions",
    "read_rows",
    "release",
    "replace_rows",
    "rewrite",
    "scan_rows",
    "scan_table",
    "scattered",
    "search",
    "shards_in",
    "table_info",
    "take_rows",
    "values_in",
    "vectors_in",
    "write_vectors",
]
