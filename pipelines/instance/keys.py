"""The instance's dynamic partition keys: the store is the truth, the keys only show it."""

from collections.abc import Sequence

import dagster as dg


def project_keys(instance: dg.DagsterInstance, study: str, shards: Sequence[str], experts: Sequence[str]) -> None:
    """Makes the instance's partition keys equal to those of the study."""
    for name, keys in ((f"{study}_shards", shards), (f"{study}_experts", experts)):
        known = instance.get_dynamic_partitions(name)
        if new := [key for key in keys if key not in set(known)]:
            instance.add_dynamic_partitions(name, new)
        for gone in set(known) - set(keys):
            instance.delete_dynamic_partition(name, gone)
