"""Readers of what users have: each gives its shards, and for each shard batches of one schema, as written.

A shard is one input file (or one slice of the synthetic posts); it is ingested, versioned and ingested again by itself.
One module a format; `reader.py` says what it gives, `registry.py` lists them, `shards.py` reads whatever there is.
"""
