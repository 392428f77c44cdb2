"""The stages of a study, from posts to the table: what each is made from, and how. `table.py` has them in order.

A stage is a file with `KEYS` (its partitions), `CODE` (raised when its results change), `plan` (what its artifact is
made from) and `make` (writes it into a folder). Nothing here knows Dagster: a script or a notebook runs the same.
"""
