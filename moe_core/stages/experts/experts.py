"""expert: one network trained on one cluster alone. random_expert and separate_expert are its controls."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moe_core.engine.context import Context
from moe_core.errors import MissingInput
from moe_core.models.resnet import ResNet, build
from moe_core.stages import reading
from moe_core.stages.experts.groups import MEMBERS, Group, group_of
from moe_core.stages.experts.modes import mode_of
from moe_core.stages.gate import membership
from moe_core.stages.training.device import device_and_threads
from moe_core.stages.training.fit import fit
from moe_core.store.artifact import Artifact, Spec, StageOutput
from moe_core.store.hashing import file_hash
from moe_core.training.posts import Posts
from moe_core.weights import load_weights, save_weights


def make(context: Context, spec: Spec, folder: Path) -> StageOutput:
    group = group_of(spec.asset)
    if mode_of(context.study).joint:
        return _extract(context, spec, group, folder)
    return _train(context, spec, group.column, folder, own_decoder=False)


def make_separate(context: Context, spec: Spec, folder: Path) -> StageOutput:
    return _train(context, spec, "expert", folder, own_decoder=True)


def _train(context: Context, spec: Spec, column: str, folder: Path, own_decoder: bool) -> StageOutput:
    """`column` of the assignment says whose posts it is trained on."""
    assert spec.key is not None
    device = device_and_threads(context.study, parallel=True)
    posts = training_posts(context, column, [spec.key], folder)[spec.key]
    before = _before(context, spec)
    model = start(context, spec.key, own_decoder, before)
    training = context.study.expert_training
    done = fit(context, spec, folder, model, posts, training, device, train_decoder=own_decoder)
    if before is None:
        return done
    continuation = {"continued_from": before.version, "images_before": images_of(before)}
    return StageOutput(dict(done.metadata) | continuation, done.content)


def training_posts(context: Context, column: str, keys: Sequence[str], folder: Path) -> dict[str, Posts]:
    """Training posts by expert, as its content hash names them; the column of the assignment says whose a post is.

    Raises ValueError where a kept expert is to be trained again on posts of which some are gone. `folder`: for files
    that are gone afterwards.
    """
    partition, index = context.need("partition"), reading.index(context)
    if "trained.parquet" in partition.files:  # it continues another: its experts' posts are not all those of now
        hashes = {key: partition.metadata[MEMBERS[column]][key] for key in keys}
        with tempfile.TemporaryDirectory(dir=folder, prefix=".scratch-") as scratch:
            file = partition.file("trained.parquet")
            rows = membership.rows_of(context, file, column, hashes, Path(scratch))
    else:
        mine_N = np.where(index.use("train"), reading.assigned(context, column), -1)
        rows = {key: np.flatnonzero(mine_N == k) for k, key in enumerate(context.experts) if key in keys}
    found = {}
    for key in keys:
        mine_N = np.zeros(len(index.split_N), bool)
        mine_N[rows[key]] = True
        found[key] = reading.posts_where(context, index, mine_N)
    return found


def _before(context: Context, spec: Spec) -> Artifact | None:
    """The expert that it continues from. Raises ValueError where that is gone."""
    if "from" not in spec.inputs:
        return None
    found = context.store.get(spec.asset, spec.key, spec.inputs["from"])
    if found is None:
        raise MissingInput(
            f"{spec.name}: the weights that it continues from ({spec.inputs['from']}) are gone: run again, and it "
            "starts as a new expert does"
        )
    return found


def images_of(artifact: Artifact) -> int:
    """Images that an expert was trained on in its life."""
    return int(artifact.metadata["training_images"] + artifact.metadata.get("images_before", 0))


def start(context: Context, key: str, own_decoder: bool, before: Artifact | None = None) -> ResNet:
    """An expert before its first step: as `before` ended, or with the trunk's decoder unless it starts from scratch
    with one of its own."""
    study = context.study
    model = reading.network(context, before or context.need("trunk"))
    if before is None and study.expert.start == "scratch":
        decoder = model.fc.state_dict()
        model = build(study.network, model.fc.out_features, study.expert_training.seed + 1 + int(key[1:]))
        if not own_decoder:
            model.fc.load_state_dict(decoder)
    model.freeze_stages(study.expert.branch_at)
    return model


def _extract(context: Context, spec: Spec, group: Group, folder: Path) -> StageOutput:
    """One expert of a generation, under its own name."""
    assert spec.key is not None
    artifact, key = context.need(group.generation), spec.key
    state, _ = load_weights(artifact.file(f"experts/{key}.safetensors"))
    weights = folder / "weights.safetensors"
    about = {"asset": group.stage, "key": key, "version": spec.version}
    save_weights(weights, state, about | {"generation": artifact.version})
    shutil.copyfile(artifact.file(f"logs/{key}.jsonl"), folder / "log.jsonl")
    return StageOutput(
        metadata=artifact.metadata["trained"][key] | {"generation": artifact.version},
        content={"weights": file_hash(weights)},
    )
