"""Lance data sets: posts that are replaced a shard at a time, and vectors written once. The home of lance.

A fragment holds rows of one shard only and never has a row deleted: a shard is written anew and its fragments are
swapped in one commit, so a killed writer leaves nothing visible. A pin is a Lance tag: it names the version that holds
the rows of one artifact, and nothing that a pin needs is ever cleaned up.

Fragments are 65,536 rows (or 1 GiB): best or near it at taking random rows and at scanning JPEGs, and at taking random
rows of raw pixels (docs/explanation/performance.md has the figures, benchmarks/fragment_size.py makes them).
"""

from moe_core.tables.checking import damage
from moe_core.tables.cleaning import Freed, clean, release, search
from moe_core.tables.copying import copied
from moe_core.tables.foreign import TableInfo, scan_table, table_info
from moe_core.tables.pins import parse_pin, pin_of, pins, raise_pins, unpin
from moe_core.tables.reading import count_rows, read_positions, read_rows, scan_rows, take_rows
from moe_core.tables.shards import Located, gather, locate, replace_rows, rewrite, scattered, shards_in, values_in
from moe_core.tables.vectors import ids_in, vectors_in, write_vectors

__all__ = [
    "Freed",
    "Located",
    "TableInfo",
    "clean",
    "copied",
    "count_rows",
    "damage",
    "gather",
    "ids_in",
    "locate",
    "parse_pin",
    "pin_of",
    "pins",
    "raise_pins",
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
    "unpin",
    "values_in",
    "vectors_in",
    "write_vectors",
]
