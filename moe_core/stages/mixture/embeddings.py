"""embeddings: every post of a shard in the one space that the shared decoder reads.

Each post is embedded by its own expert, published or not: the trunk, which answers in place of an unpublished one, has
another space where the decoder was refitted or trained with the experts.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from moe_core.engine.context import Context
from moe_core.serving.bundle import Bundle
from moe_core.stages import reading
from moe_core.stages.training.device import device_and_threads
from moe_core.store.artifact import Spec, StageOutput
from moe_core.tables.vectors import write_vectors

CHUNK = 4_096  # posts embedded at a time


def make(context: Context, spec: Spec, folder: Path) -> StageOutput:
    key = spec.key
    assert key is not None
    device = device_and_threads(context.study, parallel=True)
    bundle = Bundle(context.need("mixture"))
    assert list(bundle.published) == list(context.experts)  # so their numbers are the assignment's
    images = reading.images_of(context, key, bundle.image_size)
    expert_N = reading.experts_of(context, key)
    ids = reading.ids_of(context, key)
    content, width = hashlib.sha256(), bundle.router.width

    def parts() -> Iterator[tuple[dict[str, pa.Array], np.ndarray]]:
        for first in range(0, len(images), CHUNK):
            expert_B = expert_N[first : first + CHUNK]
            some = images.subset(np.arange(first, first + len(expert_B)))
            embedding_BD = bundle.features_by_expert(expert_B, some, device).numpy()
            content.update(embedding_BD.tobytes() + expert_B.tobytes())
            context.report({"posts": first + len(embedding_BD)})
            yield {"id": ids[first : first + CHUNK], "expert": pa.array(expert_B)}, embedding_BD

    columns = {"id": pa.string(), "expert": pa.int32()}
    count = write_vectors(folder / "embeddings.lance", columns, "embedding", width, parts())
    return StageOutput({"posts": count, "width": width}, content={"embeddings": content.hexdigest()})
