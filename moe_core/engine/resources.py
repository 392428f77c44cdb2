"""Cores and threads of one stage."""

from __future__ import annotations

from moe_core import threads
from moe_core.threads import cores

SHARE = "HARDMOE_SHARE"  # cores of one worker, set by --workers for the processes that it starts


def threads_for(parallel: bool, experts: int) -> int:
    """Cores of one stage, from the machine and the study alone, or HARDMOE_THREADS, or --workers.

    A stage that runs beside others of its kind gets its share of the cores; one that runs alone gets all.
    """
    if chosen := threads.whole_number("HARDMOE_THREADS") or threads.whole_number(SHARE):
        return chosen
    return max(1, cores() // min(max(experts, 2), cores())) if parallel else cores()


def workers_for(experts: int) -> int:
    """Processes that work beside each other on the cores there are."""
    return max(1, cores() // (threads.chosen_threads() or threads_for(True, experts)))
