"""Hard mixtures of convolutional experts on images with hashtags: everything that is not Dagster.

Source of the method: Gross, Ranzato and Szlam, "Hard Mixtures of Experts for Large Scale Weakly Supervised Vision",
CVPR 2017. Our defaults and measurements are in docs/.
"""

import os
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from moe_core.threads import shorten_waits

if TYPE_CHECKING:
    from moe_core.api import Mixture

# Both are read when torch is loaded, so before anything here can load it.
shorten_waits()
# Large tensors in huge pages, where Linux gives them on request: without, training on a CPU spends a tenth of its time
# on page faults, and half where there are 100,000 hashtags (docs/explanation/performance.md).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def open(
    path: "str | os.PathLike[str]", version: str | None = None, memory_mib: int | None = None, device: str | None = None
) -> "Mixture":
    """The mixture of a study (its folder or study.toml, the published one or that of a version, its beginning or its
    name), or of a bundle's folder; ready to predict, embed and search.

    `memory_mib` bounds the experts that are held at once, and the vectors that search holds. `device`: cpu, cuda;
    without it a GPU where there is one. Raises MissingInput where there is none, CorruptArtifact for a damaged one.
    """
    mixture: Mixture = resolve_name("moe_core.api:opened")(path, version, memory_mib, device)
    return mixture
