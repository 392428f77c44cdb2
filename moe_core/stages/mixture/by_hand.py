"""Publication by hand: a version whatever it scores, or the one before."""

from moe_core.engine.context import Context
from moe_core.serving.publication import Decision, PublicationLog, deciding, save
from moe_core.stages.mixture.comparison import open_mixture
from moe_core.store.locks import shared


def force(context: Context, mixture: str) -> PublicationLog:
    """Publishes a version by hand, whatever it scores. Raises HardmoeError for an incomplete bundle."""
    with shared(context.store.layout.in_use), deciding(context.root) as log:
        open_mixture(context, mixture)
        if log.published != mixture:
            why = "by hand, without a comparison"
            log = log.adding(Decision("forced", mixture, log.published, mixture, why, context.by))
            save(context.root, log)
        return log


def roll_back(context: Context) -> PublicationLog:
    """Publishes what was published before. Raises HardmoeError where there is none, or its bundle is incomplete."""
    with shared(context.store.layout.in_use), deciding(context.root) as log:
        after = log.rolled_back(context.by)
        open_mixture(context, after.published)
        save(context.root, after)
        return after
