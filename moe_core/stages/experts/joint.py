"""joint_experts: all the experts and their one decoder, trained together: one generation, written at once.

The process that builds it starts others (`joint_helper`), as many as there are shares of the cores or GPUs, and trains
with them; one that dies or stalls is replaced. `random_joint_experts` is the same for the random partition.
"""

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_core import threads
from moe_core.engine.context import Context
from moe_core.engine.nodes import Member, Nodes
from moe_core.stages.experts.experts import start, training_posts
from moe_core.stages.experts.groups import group_of
from moe_core.stages.training.device import device_and_threads
from moe_core.stages.training.fit import training_threads
from moe_core.stages.training.log import TrainingLog, copy_log
from moe_core.store.artifact import Spec, StageOutput
from moe_core.store.files import write_text
from moe_core.store.hashing import file_hash
from moe_core.training.joint import Joint, take_part, trained_decoder, trained_expert
from moe_core.weights import save_weights

JOB = "job.json"  # in the work folder: what a worker is to train
MOST_KILLED = 20  # then there is a reason, such as too little memory: this process trains on alone


def make(context: Context, spec: Spec, folder: Path) -> StageOutput:
    began, study = time.monotonic(), context.study
    device = device_and_threads(study, parallel=True)
    with context.store.work(spec) as work:
        joint = open_joint(context, spec, work.folder)
        job = {"root": str(context.root), "name": spec.asset, "version": spec.version}
        write_text(joint.folder / JOB, json.dumps(job | {"study": study.model_dump(mode="json")}))
        with closing(Helpers(joint.folder, context.nodes, context.nodes.places(study)[1:])) as helpers:
            for number in range(len(helpers.places)):
                helpers.start(number)
            for _ in train_part(context, joint, device):
                helpers.replace_killed()
                work.publish()
        trained = _write(context, spec, joint, folder)
    return StageOutput(
        metadata={
            "trained": trained,
            "training_images": sum(one["training_images"] for one in trained.values()),
            "loss": round(sum(one["loss"] for one in trained.values()) / len(trained), 4),
            "rounds": study.decoder.rounds,
            "seconds": round(time.monotonic() - began, 3),
            "processes": len(helpers.places) + 1,
            "killed": helpers.killed,
            "device": device,
        },
        content={path.name: file_hash(path) for path in sorted(folder.rglob("*.safetensors"))},
    )


def _write(context: Context, spec: Spec, joint: Joint, folder: Path) -> dict[str, dict[str, Any]]:
    """Writes the decoder, the experts and their logs; returns what is recorded of each expert's training."""
    (folder / "experts").mkdir()
    (folder / "logs").mkdir()
    about = {"asset": spec.asset, "version": spec.version, "trunk": context.version("trunk")}
    save_weights(folder / "decoder.safetensors", trained_decoder(joint), about)
    trained = {}
    for k in context.experts:
        save_weights(folder / "experts" / f"{k}.safetensors", trained_expert(joint, k), about | {"key": k})
        log = joint.folder / f"{k}.jsonl"
        trained[k] = copy_log(log, folder / "logs" / log.name, len(joint.posts[k])) | threads.used()
    return trained


def open_joint(context: Context, spec: Spec, work: Path) -> Joint:
    """The joint training of a generation as every process sees it; all of them work in the folder `work`."""
    return Joint(
        work,
        posts=training_posts(context, group_of(spec.asset).column, context.experts, work),
        network=lambda key: start(context, key, own_decoder=False),
        training=context.study.expert_training,
        decoder=context.study.decoder,
    )


def train_part(context: Context, joint: Joint, device: str) -> Iterator[None]:
    """Takes part until the last round is done, logs and reports; yields every now and then, at work and waiting."""
    study, largest = context.study, max(joint.posts, key=lambda key: len(joint.posts[key]))
    training_threads(joint.network(largest), study.data.image_size, joint.training, len(joint.posts[largest]))
    logs = {key: TrainingLog(joint.folder / f"{key}.jsonl", context.report) for key in joint.posts}
    for one in take_part(joint, device):
        if one is not None:  # in an expert's speed, waiting for the others counts
            logs[one.key].add(one.measurement, round=one.number + 1, rounds=joint.decoder.rounds)
        yield


@dataclass
class Helpers:
    """Other processes that take part."""

    work: Path
    nodes: Nodes
    places: list[str]  # of each
    members: dict[int, Member] = field(default_factory=dict)
    killed: int = 0

    def start(self, number: int) -> None:
        self.members[number] = self.nodes.helper(self.places[number], "moe_core.joint_helper", self.work)

    def replace_killed(self) -> None:
        """One that ended by an error is not replaced: this process comes to the same error, and reports it."""
        for number, member in list(self.members.items()):
            if (member.exit_code() or 0) < 0 and self.killed < MOST_KILLED:
                self.killed += 1
                member.close()
                self.start(number)

    def close(self) -> None:
        for member in self.members.values():
            member.close()
