"""Documents that a process of a test writes, in the place that the test names."""

from pathlib import Path

from moe_core.store.blobs import Folder
from moe_core.store.cache import Cache
from moe_core.store.documents import documents_of
from moe_core.store.places import place_of


def documents(where):
    if "root" in where:
        return documents_of(Folder(Path(where["root"])))
    return documents_of(place_of(where["uri"], where["options"], Cache(Path(where["cache"]))))
