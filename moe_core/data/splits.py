"""Which post is for training, choosing or testing: by hash, so that new posts never move an old one."""

import hashlib

from moe_core.settings import Data

GIVEN = {"train": "train", "test": "test", "validation": "validation", "val": "validation", "valid": "validation"}


def split_of(post_id: str, user: str | None, given: str | None, data: Data) -> str:
    """'train', 'validation' or 'test'. A given split stays, but for the validation posts taken out of train."""
    group = user if data.split_by == "user" and user else post_id
    place = int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8, person=b"hardmoe-split").digest()) / 2**64
    if given:
        split = GIVEN.get(given.strip().lower())
        if split is None:
            raise ValueError(f"post {post_id} says split {given!r}: wanted train, validation or test, or nothing")
        return "validation" if split == "train" and place < data.validation else split
    if place < data.test:
        return "test"
    return "validation" if place < data.test + data.validation else "train"
