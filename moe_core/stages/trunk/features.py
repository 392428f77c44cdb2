"""trunk_features: the trunk's last hidden layer for every post of a shard; a new shard costs its own posts only."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from moe_core.engine.context import Context
from moe_core.stages import reading
from moe_core.stages.training.device import device_and_threads
from moe_core.store.artifact import Spec, StageOutput
from moe_core.tables.vectors import write_vectors
from moe_core.training.infer import features_in_parts


def make(context: Context, spec: Spec, folder: Path) -> StageOutput:
    key = spec.key
    assert key is not None
    device = device_and_threads(context.study, parallel=True)
    model = reading.embedder(context, context.need("trunk"))
    ids = reading.ids_of(context, key)
    images = reading.images_of(context, key, context.study.data.image_size)
    content, norms = hashlib.sha256(), []

    def parts() -> Iterator[tuple[dict[str, pa.Array], np.ndarray]]:
        for first, some_BD in features_in_parts(model, images, context.study.trunk.precision, device):
            found_BD = some_BD.numpy()
            content.update(found_BD.tobytes())
            norms.append(np.linalg.norm(found_BD, axis=1).sum())
            context.report({"posts": first + len(found_BD)})
            yield {"id": ids[first : first + len(found_BD)]}, found_BD

    rows = write_vectors(folder / "features.lance", {"id": pa.string()}, "feature", model.width, parts())
    return StageOutput(
        {"posts": rows, "width": model.width, "mean_norm": round(float(sum(norms)) / max(rows, 1), 4)},
        content={"features": content.hexdigest()},
    )
