"""Hard mixtures of convolutional experts on images with hashtags: everything that is not Dagster.

Source of the method: Gross, Ranzato and Szlam, "Hard Mixtures of Experts for Large Scale Weakly Supervised Vision",
CVPR 2017. Our defaults and measurements are in docs/.
"""

import os

from moe_core.threads import shorten_waits

# Both are read when torch is loaded, so before anything here can load it.
shorten_waits()
# Large tensors in huge pages, where Linux gives them on request: without, training on a CPU spends a tenth of its time
# on page faults, and half where there are 100,000 hashtags (docs/explanation/performance.md).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
