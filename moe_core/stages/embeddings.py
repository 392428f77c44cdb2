"""embeddings: every post of a shard in the one space that the shared decoder reads, with an index for search."""

import hashlib
from pathlib import Path

from moe_core.stages import reading
from moe_core.stages.context import Context, device_and_threads
from moe_core.stages.stage import Stage
from moe_core.store import Written
from moe_core.tables import ids_in


def _make(context: Context, key: str | None, folder: Path) -> Written:
    import numpy as np
    import pyarrow as pa
    import torch

    from moe_core.data.loading import load_posts, read_columns
    from moe_core.serving.bundle import Bundle
    from moe_core.tables import write_vectors

    device = device_and_threads(parallel=True, experts=context.study.partition.experts)
    bundle = Bundle(context.need("mixture").path)
    place = [p for p in reading.places(context) if p.shard == key]
    posts = load_posts(context.root, place, reading.vocabulary(context), bundle.image_size)
    rows = reading.assignment(context)
    expert_N = rows.filter(rows["shard"] == key)["expert"].to_numpy()
    vectors_ND = torch.empty(len(posts), bundle.router.width)
    for number, expert in enumerate(bundle.published):
        mine = torch.from_numpy(np.flatnonzero(expert_N == number))
        if len(mine):
            vectors_ND[mine] = bundle.expert_features(expert, posts.images_NCHW[mine], device)
            context.report({"experts": number + 1})
    ids = read_columns(context.root, place, ["id"])["id"]
    columns = {"id": pa.array(ids.to_list()), "expert": pa.array(expert_N)}
    found_ND = vectors_ND.numpy()
    write_vectors(folder / "embeddings.lance", columns, "embedding", found_ND, index=True)
    return Written(
        {"posts": len(found_ND), "width": found_ND.shape[1]},
        content={"embeddings": hashlib.sha256(found_ND.tobytes() + expert_N.tobytes()).hexdigest()},
    )


EMBEDDINGS = Stage(
    name="embeddings",
    keys="shards",
    code="1",
    reads=("mixture", "partition", "posts"),
    settings=lambda study: {},
    inputs=lambda context, key: {"mixture": context.version("mixture"), "posts": context.version("posts", key)},
    make=_make,
    holds=lambda artefact: ids_in(artefact.path / "embeddings.lance"),
)
