"""Lance data sets: posts that are replaced a shard at a time, and vectors written once. Only this package uses lance.

A fragment holds rows of one shard only and never has a row deleted: a shard is written again and its fragments are
swapped in one commit, so a killed writer leaves nothing visible. A Lance tag names the version that holds the rows of
one artifact; what a tag needs is never cleaned up.

Fragments are 65,536 rows (or 1 GiB): best or near it at taking random rows and at scanning JPEGs, and at taking random
rows of raw pixels (docs/explanation/performance.md has the figures, benchmarks/fragment_size.py makes them).
"""
