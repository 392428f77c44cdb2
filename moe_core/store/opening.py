"""Opens the store of a study: the only place that chooses which implementation of `protocols.py` that is."""

from pathlib import Path

from moe_core.store.store import Store


def open_store(root: Path) -> Store:
    """The artifacts under `root`; nothing is read or written before something is asked of them."""
    return Store(root)
