"""Blobs in an object store (S3, Google Cloud Storage, Azure), by obstore.

The one special request is a put with `If-None-Match: *`: never If-Match, which Ceph and DigitalOcean refuse. obstore
repeats requests that got no answer, so an answer "it is there already" may speak of one's own; the bytes tell. What it
does not repeat, such as the end of a large upload, is asked again here: every request means the same when repeated.

obstore computes in threads that a forked process has not: a process that is forked after the first request must not
use it. Credentials are those of the environment (AWS_ACCESS_KEY_ID ...); files in ~/.aws are not read.
"""

import hashlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

from moe_core.errors import BadSetting, CorruptArtifact, HardmoeError, MissingLibrary, StorageFailed
from moe_core.store.blobs import Entry
from moe_core.store.cache import Cache

T = TypeVar("T")
MIB = 1 << 20
PART = 16 * MIB  # of an upload or a download: a request
PARTS = 9_000  # of an upload; S3 takes 10,000
PATIENCE = 180.0  # seconds from the first try of a request to the last
RETRIES = 5  # obstore's own, within some 5 s; ours follow
REQUEST_SECONDS = 120  # for one part: 1 Mbit/s is enough
CONNECT_SECONDS = 10
CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
NO_BUCKET = ("NoSuchBucket", "InvalidBucketName", "ContainerNotFound", "The specified bucket does not exist")
REFUSED = ("status code: 401", "status code: 403", "AccessDenied", "ExpiredToken", "InvalidToken")
BEYOND = ("InvalidRange", "status code: 416")
FAILED = (
    "Generic S3 error",
    "Generic GCS error",
    "Generic MicrosoftAzure error",
    "EOF while parsing",  # a Lance tag that was replaced by a longer one while it was read
)
NO_CREDENTIALS = ("169.254.169.254", "metadata.google.internal", "MissingCredential")

_used_in: list[int] = []  # the process that has obstore's threads


class Bucket:
    """Blobs under a prefix of a bucket, such as s3://bucket/cats; fetched files lie in `cache`.

    `options` are obstore's, such as endpoint; `patience` is in seconds. Nothing is opened before the first request,
    which raises BadSetting without credentials and MissingLibrary without obstore.
    """

    def __init__(self, uri: str, options: Mapping[str, str], cache: Cache, patience: float = PATIENCE) -> None:
        self.uri, self.options, self.cache = uri.rstrip("/"), dict(options), cache
        self.patience = patience
        self.endpoint = options.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL", "")

    @cached_property
    def _obstore(self) -> Any:
        return import_obstore()

    @cached_property
    def _store(self) -> Any:
        """Opened by the first request: a process may be forked before it."""
        if not _used_in:
            _used_in.append(os.getpid())
        return self._open(self.options)

    def _open(self, options: Mapping[str, str]) -> Any:
        given = {name for name in options if name in ("access_key_id", "skip_signature")}
        if self.uri.startswith("s3://") and self.endpoint and not (given or any(map(os.environ.get, CREDENTIALS))):
            raise self._no_credentials()  # away from AWS no machine hands them out
        try:
            return self._obstore.store.from_url(
                self.uri,
                config=dict(options),
                client_options={
                    "allow_http": self.endpoint.startswith("http://"),
                    "timeout": timedelta(seconds=min(REQUEST_SECONDS, self.patience)),
                    "connect_timeout": timedelta(seconds=min(CONNECT_SECONDS, self.patience)),
                },
                retry_config={
                    "max_retries": RETRIES,
                    "retry_timeout": timedelta(seconds=self.patience),
                    "backoff": {"max_backoff": timedelta(seconds=5)},
                },
            )
        except (self._obstore.exceptions.BaseError, ValueError) as error:
            raise BadSetting(f"{self.uri} cannot be opened ({_reason(error)}): see [store] in study.toml") from None

    def storage_options(self) -> dict[str, str]:
        """The options as lance takes them, which asks by itself; credentials come from the environment."""
        return {
            **self.options,
            "allow_http": str(self.endpoint.startswith("http://")).lower(),
            "client_retry_timeout": f"{self.patience:.0f}",
        }

    def ask_lance(self, name: str, request: Callable[[], T]) -> T:
        """What lance answers to a request, which is repeated as those of obstore are. Raises its other errors."""

        def ask() -> tuple[T | None, Exception | None]:
            try:
                return request(), None
            except Exception as error:
                if _says(error, FAILED):
                    raise TimeoutError(str(error)) from None
                return None, error

        answer, error = self._ask(name, ask)
        if error is not None:
            raise error
        return cast(T, answer)

    def failure(self, name: str, error: Exception) -> HardmoeError | None:
        """What an error of lance says to a user; None where the storage is not its cause."""
        if not _says(error, FAILED):
            return None
        return self._final(name, error) or self._unreachable(name, error)

    def with_patience(self, seconds: float) -> "Bucket":
        return Bucket(self.uri, self.options, self.cache, seconds)

    def read(self, name: str) -> bytes | None:
        try:
            return self._ask(name, lambda: bytes(self._obstore.get(self._store, name).bytes()))
        except FileNotFoundError:
            return None

    def create(self, name: str, data: bytes) -> bool:
        def put() -> bool:
            with suppress(self._obstore.exceptions.AlreadyExistsError):
                self._obstore.put(self._store, name, data, mode="create", use_multipart=False)
                return True
            there = self.read(name)
            if there is None:  # 409, or removed meanwhile
                raise TimeoutError("another writer was there and is no more")
            return there == data

        return self._ask(name, put)

    def write(self, name: str, data: bytes) -> None:
        self._ask(name, lambda: self._obstore.put(self._store, name, data, use_multipart=False))

    def upload(self, name: str, file: Path) -> None:
        size = file.stat().st_size
        part = max(PART, -(-size // PARTS))

        def put() -> None:
            try:
                self._obstore.put(self._store, name, file, chunk_size=part, max_concurrency=4)
            except FileNotFoundError as error:
                if _says(error, NO_BUCKET) or not file.exists():
                    raise
                raise TimeoutError(str(error)) from None  # its end was repeated after a lost answer

        self._ask(name, put)

    def hash(self, name: str) -> str | None:
        digest, position, size = hashlib.sha256(), 0, -1
        try:
            while position != size:
                data, size = self._read_part(name, position)
                digest.update(data)
                position += len(data)
        except FileNotFoundError:
            return None
        return digest.hexdigest()

    def fetch(self, name: str, sha256: str) -> Path:
        try:
            return self.cache.fetch(name, sha256, lambda start: self._read_part(name, start))
        except FileNotFoundError:
            raise CorruptArtifact(f"{self.uri}/{name} is missing", f"{self.uri}/{name}") from None
        except CorruptArtifact as error:
            raise CorruptArtifact(f"{self.uri}/{name} is damaged: {error}", f"{self.uri}/{name}") from None

    def _read_part(self, name: str, start: int) -> tuple[bytes, int]:
        """Bytes of a blob from a position on, and how many it has in all. Raises FileNotFoundError."""

        def get() -> tuple[bytes, int]:
            try:
                result = self._obstore.get(self._store, name, options={"range": (start, start + PART)})
            except self._obstore.exceptions.BaseError as error:
                if _says(error, BEYOND):
                    return b"", start  # the blob ends here, as an empty one does at 0
                raise
            return bytes(result.bytes()), result.meta["size"]

        return self._ask(name, get)

    def release(self, path: Path) -> None:
        self.cache.release(path)

    def discard(self, sha256: str) -> None:
        self.cache.discard(sha256)

    def release_all(self) -> None:
        self.cache.release_all()

    def names(self, folder: str = "") -> Iterator[Entry]:
        def listed() -> list[Entry]:
            batches = self._obstore.list(self._store, folder or None)
            return sorted(
                Entry(blob["path"], blob["size"], str(blob["e_tag"] or blob["last_modified"]))
                for batch in batches
                for blob in batch
            )

        yield from self._ask(folder, listed)

    def size(self, name: str) -> int:
        return sum(entry.size for entry in self.names(name))

    def remove(self, name: str) -> None:
        found = [entry.name for entry in self.names(name)]
        for start in range(0, len(found), 1000):
            self._delete(found[start : start + 1000])
        self._delete([name])

    def _delete(self, names: list[str]) -> None:
        try:
            self._ask(names[0], lambda: self._obstore.delete(self._store, names))
        except FileNotFoundError:  # Google and Azure say so
            for name in names if len(names) > 1 else []:
                self._delete([name])

    def _ask(self, name: str, request: Callable[[], T]) -> T:
        """The answer to a request, asked again for `patience` seconds while there is none.

        Raises FileNotFoundError, BadSetting and StorageFailed.
        """
        assert not _used_in or os.getpid() == _used_in[0], (
            "obstore was used before this process was forked: it would hang"
        )
        deadline, pause = time.monotonic() + self.patience, 0.2
        while True:
            try:
                return request()
            except HardmoeError:
                raise
            except (self._obstore.exceptions.BaseError, OSError) as error:
                if final := self._final(name, error):
                    raise final from None
                if isinstance(error, FileNotFoundError):
                    raise
                if time.monotonic() + pause > deadline:
                    raise self._unreachable(name, error) from None
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, 10)

    def _final(self, name: str, error: Exception) -> HardmoeError | None:
        """What another try would not change."""
        if _says(error, NO_BUCKET):
            return BadSetting(f"there is no bucket {self.uri}{self._where()}: create it, or mend store.uri")
        if _says(error, NO_CREDENTIALS):
            return self._no_credentials()
        if _says(error, REFUSED):
            return BadSetting(
                f"{self.uri}{self._where()} refused a request for {name or 'a list'} ({_reason(error)}): "
                "check the credentials in the environment and their rights to read, write, list and delete"
            )
        return None

    def _no_credentials(self) -> BadSetting:
        return BadSetting(
            f"{self.uri} wants credentials and there are none: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "those of Google or Azure, in the environment"
        )

    def _unreachable(self, name: str, error: Exception) -> StorageFailed:
        return StorageFailed(
            f"{self.uri}/{name}{self._where()}: no right answer for {self.patience:g} s ({_reason(error)}): "
            "check store.endpoint and the network, then run the same command to resume"
        )

    def _where(self) -> str:
        return f" at {self.endpoint}" if self.endpoint else ""


def import_obstore() -> Any:
    """The library. Raises MissingLibrary."""
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError as error:
        raise MissingLibrary(f"a store in a bucket needs obstore ({error}): pip install 'hardmoe[s3]'") from None
    return obstore


def _says(error: Exception, words: tuple[str, ...]) -> bool:
    return any(word in str(error) for word in words)


def _reason(error: Exception) -> str:
    """The server's own words, or the last of the client's, in one line."""
    text = str(error)
    code, message = (re.search(f"<{tag}>([^<]*)</{tag}>", text) for tag in ("Code", "Message"))
    if code:
        return f"{code[1]}: {message[1]}" if message and message[1] else code[1]  # Ceph sends an empty one
    first = text.split("\n", 1)[0].strip()
    return first.rsplit(" - ", 1)[-1].strip()[:200] or type(error).__name__
