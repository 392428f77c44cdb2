"""Which expert one continues from: the last one of its lineage that was trained alike, while the store has it."""

from dataclasses import replace

from moe_core.engine.planner import Planner
from moe_core.store.artifact import Artifact, Spec


def continued(planner: Planner, spec: Spec, column: str) -> Spec:
    """With the input "from", the version of the expert whose weights it continues from, where there is one.

    An expert goes on from the last one of its lineage that was trained with the same settings and trunk, as long as the
    store has it. Which one that was stays an input of what was made: it is found again when the older is gone.
    """
    lineage = planner.recorded("partition").metadata.get("lineage", {}).get(column, {}).get(spec.key, [])
    if len(lineage) < 2:
        return spec
    trained: dict[str, list[Artifact]] = {}
    for artifact in planner.store.versions(spec.asset, spec.key):
        same = replace(spec, inputs=artifact.inputs)
        if artifact.inputs.get("trunk") == spec.inputs["trunk"] and same.version == artifact.version:
            trained.setdefault(artifact.inputs["members"], []).append(artifact)
    for artifact in trained.get(lineage[-1], []):
        return artifact.spec
    if planner.state.study.repartition.start == "usual":
        return spec
    for older_members in reversed(lineage[:-1]):
        for older in trained.get(older_members, []):
            return replace(spec, inputs={**spec.inputs, "from": older.version})
    return spec
