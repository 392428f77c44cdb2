"""Documents that a process of a test writes, in the place that the test names."""

from pathlib import Path

from moe_core.store.cache import Cache
from moe_core.store.documents import BucketDocuments, FolderDocuments
from moe_core.store.places import place_of


def documents(where):
    if "root" in where:
        return FolderDocuments(root=Path(where["root"]))
    return BucketDocuments(place_of(where["uri"], where["options"], Cache(Path(where["cache"]))))
