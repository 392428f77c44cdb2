"""shared_decoder: one last layer for all the experts, so that their features lie in one space.

`frozen`: the trunk's, against which the experts were trained. `refit`: fitted once, from the trunk's, on the experts'
features of augmented training posts (those of clean ones are cleaner than the features of unseen posts).
"""

from collections.abc import Mapping
from pathlib import Path

from moe_core.stages import reading
from moe_core.stages.context import Context, device_and_threads
from moe_core.stages.stage import Stage
from moe_core.store import Written, file_digest


def _make(context: Context, key: str | None, folder: Path) -> Written:
    from moe_core.weights import save_weights

    study = context.study
    device = device_and_threads(parallel=False, experts=study.partition.experts)
    artefacts = {k: context.need("expert", k) for k in context.experts}  # complete, and of one partition
    trunk = reading.network(context, context.need("trunk"))
    metadata: dict[str, object] = {"mode": study.decoder.mode, "experts": len(artefacts), "width": trunk.width}
    if study.decoder.mode == "refit":
        metadata["loss"] = round(_refit(context, trunk.fc, device), 4)
    path = folder / "decoder.safetensors"
    about = {"asset": "shared_decoder", "version": context.version("shared_decoder"), "trunk": context.version("trunk")}
    save_weights(path, {"weight": trunk.fc.weight, "bias": trunk.fc.bias}, about)
    return Written(metadata, content={"decoder": file_digest(path)})


def _refit(context: Context, decoder, device: str) -> float:  # type: ignore[no-untyped-def]
    import numpy as np
    import torch

    from moe_core.training.batches import augment
    from moe_core.training.decoder import refit
    from moe_core.training.infer import BATCH, features_of

    study, training = context.study, context.study.expert_training
    use_N = reading.index(context).use("train")
    posts = reading.posts_where(context, use_N)
    expert_N = reading.assignment(context)["expert"].to_numpy()[use_N]
    features_ND = torch.empty(len(posts), decoder.in_features)
    for number, k in enumerate(context.experts):
        rows = torch.from_numpy(np.flatnonzero(expert_N == number))
        model = reading.network(context, context.need("expert", k))
        for first in range(0, len(rows), BATCH):
            some = rows[first : first + BATCH]
            seen = augment(posts.images_NCHW[some], training.flip, training.crop, training.seed, first)
            features_ND[some] = features_of(model, seen, training.precision, device)
        context.report({"experts": number + 1})
    refitting = study.decoder
    return refit(decoder, features_ND, posts, refitting.refit_epochs, refitting.refit_lr, training.loss, training.seed)


def _inputs(context: Context, key: str | None) -> Mapping[str, str]:
    return {"trunk": context.version("trunk")} | {k: context.version("expert", k) for k in context.experts}


SHARED_DECODER = Stage(
    name="shared_decoder",
    keys=None,
    code="1",
    reads=("expert", "partition", "trunk"),
    settings=lambda study: study.decoder.model_dump(
        include={"mode"} if study.decoder.mode == "frozen" else {"mode", "refit_epochs", "refit_lr"}
    ),
    inputs=_inputs,
    make=_make,
)
