"""After the fact, over a whole store: gc, takedown, verify, lineage."""
