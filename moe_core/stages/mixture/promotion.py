"""Whether a mixture is published: from the comparison with the published one follows the decision.

The artifact is the comparison; the decision goes into published.json (moe_core.serving.publication). A run that is
killed between the two takes the decision when it comes again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from moe_core.engine.context import Context
from moe_core.engine.planner import Planner
from moe_core.errors import HardmoeError
from moe_core.serving import publication
from moe_core.serving.publication import UNPUBLISHED, Action, Decision, PublicationLog
from moe_core.store.artifact import Artifact, Spec

NONE = "none"  # as an input: nothing is published
UNREADABLE = "unreadable"  # as an input: published.json is damaged; making the artifact says so


@dataclass(frozen=True)
class Judgment:
    """Whether a mixture may be published, why, and what that was judged by."""

    publish: bool
    why: str
    scores: Mapping[str, Any]


def decide(context: Context, mixture: str, baseline: str, judgment: Judgment, artifact: str = "") -> PublicationLog:
    """Writes the decision down, and with it publishes or refuses; a judgment that was settled already changes nothing,
    unless the mixture of a later run took its place since and the study has come back to this one.

    Raises HardmoeError where another mixture was published since the comparison.
    """

    def decided(log: PublicationLog) -> PublicationLog:
        settled = artifact and any(d.comparison == artifact for d in log.history) and not log.superseded(mixture)
        if settled or log.published == mixture:
            return log
        if log.published != baseline:
            raise HardmoeError(
                f"{log.published or 'nothing'} is published now, mixture {mixture} was compared with "
                f"{baseline or 'nothing'}: run again"
            )
        publish, why = judgment.publish, judgment.why
        if artifact and publish and (taken_back := log.withdrawn(mixture)):
            publish = False
            why = f"it was rolled back on {taken_back.at}: only `hardmoe publish --version` brings it back"
        action: Action = "published" if publish else "refused"
        published = mixture if publish else baseline
        decision = Decision(action, mixture, baseline, published, why, context.by, artifact, judgment.scores)
        return log.adding(decision)

    with context.store.keeping():
        return publication.change(context.store.documents, decided)


def resolve(planner: Planner, spec: Spec) -> Spec:
    """With `baseline`: what was published when the mixture was judged, once it is judged, so that a judgment does not
    grow stale by the publication that follows from it. A study that comes back to an older mixture has it judged again.
    """
    log = planner.state.publication
    if isinstance(log, Exception):
        return replace(spec, inputs={**spec.inputs, "baseline": UNREADABLE})
    mixture = spec.inputs["mixture"]
    for decision in () if log.superseded(mixture) else reversed(log.history):
        if decision.mixture == mixture and decision.comparison:
            judged = replace(spec, inputs={**spec.inputs, "baseline": decision.baseline or NONE})
            if judged.version == decision.comparison:
                return judged
    return replace(spec, inputs={**spec.inputs, "baseline": log.published or NONE})


def on_commit(context: Context, artifact: Artifact) -> None:
    scores = dict(artifact.metadata)
    judgment = Judgment(scores.pop("publish"), scores.pop("why"), scores)
    baseline = artifact.inputs["baseline"]
    published = UNPUBLISHED if baseline == NONE else baseline
    decide(context, artifact.inputs["mixture"], published, judgment, artifact.version)
