"""Hashtags in a file beside each picture: `cat.txt` beside `cat.jpg`, a hashtag a line, as tools that train on captions
read them; `cat.jpg.xmp`, as darktable, digiKam and Immich read keywords.

A file that is there and says something else is left as it is: it may be somebody's work, and to merge into XMP of
another program means to rewrite it.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from moe_core.processes import this_process

KINDS = ("txt", "xmp")
MOST_BYTES = 1 << 20  # of a file that is compared with ours
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="hardmoe">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/">
   <dc:subject>
    <rdf:Bag>
{items}    </rdf:Bag>
   </dc:subject>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""


def sidecar_of(picture: str, kind: str) -> Path:
    """Where the file of a picture lies."""
    return Path(f"{picture}.xmp") if kind == "xmp" else Path(picture).with_suffix(".txt")


def text_of(hashtags: Sequence[str], kind: str) -> str:
    if kind == "txt":
        return "".join(f"{tag}\n" for tag in hashtags)
    return _XMP.replace("{items}", "".join(f"     <rdf:li>{escape(_printable(tag))}</rdf:li>\n" for tag in hashtags))


def _printable(tag: str) -> str:
    """Without what XML 1.0 cannot hold."""
    return "".join(c for c in tag if c >= " " and c not in "\ufffe\uffff" and not "\ud800" <= c <= "\udfff")


def write_sidecar(picture: str, kind: str, hashtags: Sequence[str], replace: bool) -> bool:
    """Writes the file whole or not at all; with `replace` also in place of another one. False where one is there that
    says something else."""
    path, data = sidecar_of(picture, kind), text_of(hashtags, kind).encode("utf-8", "backslashreplace")
    if os.path.lexists(path) and not replace:
        return _holds(path, data)
    part = path.with_name(f".{path.name}.{this_process()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return True


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.is_file() and path.stat().st_size <= MOST_BYTES and path.read_bytes() == data
    except OSError:
        return False
