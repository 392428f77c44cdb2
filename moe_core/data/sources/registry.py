"""The reader of each format, from the module that its row in moe_core/formats.py names."""

from importlib import import_module

from moe_core.data.sources.reader import Reader
from moe_core.formats import FORMATS

READERS: dict[str, Reader] = {
    format.name: import_module(f"{__package__}.{format.module}").READERS[format.name] for format in FORMATS.values()
}
