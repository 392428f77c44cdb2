"""Where a post came from: a URL of its row, the path of its image within the source, or its place in a file."""

from moe_core.data.sources.files import fixed_part, is_remote, local
from moe_core.settings import Source
from moe_core.text import utf8


def root_of(source: Source) -> str:
    """The folder that paths are relative to; of a source that is a file or a glob, the folder that it lies in."""
    root = fixed_part(local(source.uri))
    return str(root if root.is_dir() else root.parent)


def within(path: str, root: str) -> str:
    """A path relative to the root; one that lies elsewhere as it is."""
    return utf8(path.removeprefix(root.rstrip("/") + "/"))


def shard_name(source: Source, path: str) -> str:
    """A shard's file, before the row or member: relative to the source, or a URI."""
    if is_remote(path):
        return path
    root = local(source.uri)
    return root.name if str(local(path)) == str(root) else within(str(local(path)), root_of(source))
