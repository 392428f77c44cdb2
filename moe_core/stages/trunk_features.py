"""trunk_features: the trunk's last hidden layer for every post of a shard; a new shard costs its own posts only."""

import hashlib
from pathlib import Path

from moe_core.stages import reading
from moe_core.stages.context import Context, device_and_threads
from moe_core.stages.stage import Stage
from moe_core.store import Written
from moe_core.tables import ids_in


def _make(context: Context, key: str | None, folder: Path) -> Written:
    import pyarrow as pa

    from moe_core.data.loading import load_posts, read_columns
    from moe_core.tables import write_vectors
    from moe_core.training.infer import features_of

    device = device_and_threads(parallel=True, experts=context.study.partition.experts)
    place = [p for p in reading.places(context) if p.shard == key]
    model = reading.network(context, context.need("trunk"))
    posts = load_posts(context.root, place, reading.vocabulary(context), context.study.data.image_size)
    features_ND = features_of(model, posts.images_NCHW, context.study.trunk.precision, device).numpy()
    ids = read_columns(context.root, place, ["id"])["id"]
    write_vectors(folder / "features.lance", {"id": pa.array(ids.to_list())}, "feature", features_ND, index=False)
    return Written(
        {"posts": len(features_ND), "width": features_ND.shape[1], "mean_norm": _mean_norm(features_ND)},
        content={"features": hashlib.sha256(features_ND.tobytes()).hexdigest()},
    )


def _mean_norm(features_ND) -> float:  # type: ignore[no-untyped-def]
    import numpy as np

    return round(float(np.linalg.norm(features_ND, axis=1).mean()), 4)


TRUNK_FEATURES = Stage(
    name="trunk_features",
    keys="shards",
    code="1",
    reads=("posts", "trunk"),
    settings=lambda study: {},
    inputs=lambda context, key: {"trunk": context.version("trunk"), "posts": context.version("posts", key)},
    make=_make,
    holds=lambda artefact: ids_in(artefact.path / "features.lance"),
)
