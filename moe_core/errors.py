"""Errors with a class for each way to fail that a caller may want to tell apart.

The command line prints a HardmoeError in one line: what was wanted, what came, what to do. Anything else is a bug and
shows its traceback. All are ValueErrors too, as a notebook expects of bad input.
"""

import sys
from collections.abc import Sequence


class HardmoeError(ValueError):
    """What a user can mend: its text says how."""


class BadSetting(HardmoeError):
    """A value in study.toml, an option of a command or an environment variable is not one that was wanted."""


class BadSource(HardmoeError):
    """The source of a study cannot be read, or is not what its settings say."""


class BadImage(HardmoeError):
    """An image that was given to be answered is none, or is beyond the limits of ingest."""


class Unknown(HardmoeError):
    """A post or hashtag that was asked for is not there; `near`: spellings that may be meant."""

    def __init__(self, message: str, near: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.near = list(near)


class MissingLibrary(HardmoeError):
    """A library is not installed, or its installation is broken."""


class MissingInput(HardmoeError):
    """An artifact must be built before this can be done. `asset` and `key` name it."""

    def __init__(self, message: str, asset: str = "", key: str | None = None) -> None:
        super().__init__(message)
        self.asset, self.key = asset, key


class CorruptArtifact(HardmoeError):
    """A file of the store is not the one that was written. `path` names it."""

    def __init__(self, message: str, path: object = "") -> None:
        super().__init__(message)
        self.path = path


class LockHeld(HardmoeError):
    """Another process holds what was wanted alone. `path` names the lock."""

    def __init__(self, message: str, path: object = "") -> None:
        super().__init__(message)
        self.path = path


class Overtaken(HardmoeError):
    """Another process took over what this one held alone, since it was silent for too long."""


class StorageFailed(HardmoeError):
    """An object store did not answer, or not as it should: the same command resumes."""


class CacheFull(HardmoeError):
    """The node's cache of files has no room for one that is wanted."""


class NotFinite(HardmoeError):
    """A loss, weights or features are not finite numbers."""


class TooFewPosts(HardmoeError):
    """There are not enough posts for what the settings ask."""


class DeviceFailed(HardmoeError):
    """A GPU gave an error, or has not the memory that was wanted."""


class TrainingFailed(HardmoeError):
    """A process that trains ended before it was done."""


class RankLost(TrainingFailed):
    """It was killed, or stalled, or is lost with its machine: the next try may do better."""


OF_A_GPU = ("CUDA error", "cuDNN error", "CUDA out of memory", "NCCL")  # plain RuntimeErrors that begin with it


def device_error(error: Exception) -> DeviceFailed | None:
    """What an error that torch raised for a GPU says to a user; None for any other."""
    torch = sys.modules.get("torch")  # without which there is none
    if not torch:
        return None
    plain = isinstance(error, RuntimeError) and str(error).startswith(OF_A_GPU)
    if plain or isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
        return DeviceFailed(str(error).strip().splitlines()[0])
    return None
