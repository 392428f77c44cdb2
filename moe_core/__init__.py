"""Hard mixtures of convolutional experts on images with hashtags: everything that is not Dagster.

Source of the method: Gross, Ranzato and Szlam, "Hard Mixtures of Experts for Large Scale Weakly Supervised Vision",
CVPR 2017. Our defaults and measurements are in docs/.
"""

from moe_core.threads import shorten_waits

shorten_waits()  # read when torch is loaded, so before anything here can load it
