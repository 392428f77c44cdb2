"""Which place a uri names, whether it keeps its word, and whose it is."""

import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from moe_core.errors import BadSetting
from moe_core.settings import SCHEMES
from moe_core.store.blobs import Blobs, Folder
from moe_core.store.bucket import PATIENCE, Bucket
from moe_core.store.cache import Cache, default_folder

WRITERS, ROUNDS = 8, 20
AT_ONCE = 5  # rounds: some servers let the losers of one wait for seconds
OWNER = ".study"


def place_of(
    uri: str, options: Mapping[str, str] | None = None, cache: Cache | None = None, patience: float = PATIENCE
) -> Blobs:
    """The blobs at s3://, gs:// or az://, or in a local folder. obstore is imported for the former alone.

    `options` are obstore's, such as endpoint. Raises BadSetting and MissingLibrary.
    """
    if uri.startswith(SCHEMES):
        return Bucket(uri, options or {}, cache or Cache(default_folder()), patience)
    if "://" in uri:
        raise BadSetting(f"store.uri is {uri!r}: wanted a folder, or a bucket as in {', '.join(SCHEMES)}")
    return Folder(Path(uri))


def probe(place: Blobs, rounds: int = ROUNDS) -> None:
    """Lets 8 writers create one blob at once, 20 times. Raises BadSetting where not exactly one wins each time.

    Some servers take `If-None-Match: *` and do not heed it, or not among writers at once (seaweedfs/seaweedfs#8800,
    versity/versitygw#2288, rustfs/rustfs#1659): two runs would both commit.
    """
    folder = f".probe/{uuid.uuid4().hex}"

    def play(number: int) -> None:
        name, barrier = f"{folder}/{number:02d}", threading.Barrier(WRITERS)

        def create(writer: int) -> bool:
            barrier.wait(60)
            return place.create(name, b"writer %d" % writer)

        with ThreadPoolExecutor(WRITERS) as writers:
            won = [*writers.map(create, range(WRITERS))]
        _judge(place, number, won, place.read(name))

    try:
        with ThreadPoolExecutor(AT_ONCE) as games:
            for _ in games.map(play, range(rounds)):
                pass
    finally:
        place.remove(folder)


def _judge(place: Blobs, number: int, won: list[bool], there: bytes | None) -> None:
    winners = [writer for writer, one in enumerate(won) if one]
    if len(winners) != 1:
        does = f"told {len(winners)} of {len(won)} writers of one object that theirs is there"
    elif there != b"writer %d" % winners[0]:
        does = f"told writer {winners[0]} that its object is there, and has {there!r}"
    else:
        return
    raise BadSetting(
        f"{place.uri} does not keep `If-None-Match: *` (round {number + 1}: it {does}), so two runs would both "
        "commit: use another server, a newer version of it, or a folder"
    )


def claim(place: Blobs, study: str, rounds: int = ROUNDS) -> None:
    """Notes whose the place is, before anything is written into it; the first time it is probed.

    Raises BadSetting where it is another study's, or does not keep its word.
    """
    if not is_claimed(place, study):
        probe(place, rounds)
        place.create(OWNER, f"{study}\n".encode())
        is_claimed(place, study)


def is_claimed(place: Blobs, study: str) -> bool:
    """Whether the place is this study's, by one request. Raises BadSetting where it is another's."""
    note = place.read(OWNER)
    owner = (note or b"").decode("utf-8", "replace").strip()
    if note is not None and owner != study:
        raise BadSetting(
            f"{place.uri} holds the study {owner!r}, whose posts and networks lie there; this one is {study!r}: "
            "give it a prefix of its own in store.uri"
        )
    return note is not None
