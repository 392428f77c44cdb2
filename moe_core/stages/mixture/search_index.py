"""search_index: all that search reads of the posts of a mixture: their vectors in lists, and one row of each.

Where posts are many the vectors lie in the lists of their nearest centroids (moe_core/search/lists.py), of which a
query reads some. How many is chosen here by queries of both kinds, posts and hashtags, and the recall against exact
search is measured on other ones and recorded.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moe_core.engine.context import Context
from moe_core.search import build
from moe_core.search.files import POSTS_FILE, SEARCHED, VectorFiles
from moe_core.search.lists import Lists, unit
from moe_core.search.posts import read_posts
from moe_core.store.artifact import Artifact, Spec, StageOutput
from moe_core.tables.memory import copied
from moe_core.tables.vectors import vectors_in
from moe_core.weights import load_weights

SEED = 0


def make(context: Context, spec: Spec, folder: Path) -> StageOutput:
    embeddings = [context.need("embeddings", shard.key) for shard in context.shards]
    folders = [artifact.folder("embeddings.lance") for artifact in embeddings]
    width = int(embeddings[0].metadata["width"])
    count = _write_posts(context, folder / POSTS_FILE, embeddings)
    settings = context.study.search

    def parts() -> Iterator[np.ndarray]:
        for each in folders:
            yield from vectors_in(each, "embedding")

    memory_bytes = settings.memory_mib << 20
    lists = build.lists_for(count, settings.index_from)
    build.write_lists(folder, parts, count, width, lists, SEED, memory_bytes)
    about = {"posts": count, "width": width, "lists": lists, "probes": lists, "recall": {}}
    about |= {"shards": {str(artifact.key): artifact.inputs["posts"] for artifact in embeddings}}
    if lists > 1:
        about |= _measured(context, folder, parts, count, width, memory_bytes)
    return StageOutput(about)


def _write_posts(context: Context, path: Path, embeddings: list[Artifact]) -> int:
    count = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SEARCHED) as writer:
        for batch in read_posts(context.store, embeddings, context.need("splits")):
            writer.write_batch(copied(batch))
            count += len(batch)
            context.report({"posts": count})
    return count


def _measured(
    context: Context, folder: Path, parts: build.Parts, count: int, width: int, memory_bytes: int
) -> dict[str, Any]:
    draw = np.random.default_rng(SEED + 1)
    rows = np.sort(draw.choice(count, min(count, build.QUERIES), replace=False))
    decoder_VD = load_weights(context.need("shared_decoder").file("decoder.safetensors"))[0]["weight"].numpy()
    tags = draw.choice(len(decoder_VD), min(len(decoder_VD), build.QUERIES), replace=False)
    queries = {"posts": build.vectors_at(parts, rows, width), "hashtags": unit(decoder_VD[tags])}
    top = min(build.TOP, count)
    exact = {kind: build.exact_answers(parts, queries_QD, top) for kind, queries_QD in queries.items()}
    lists = Lists(VectorFiles(folder.joinpath), memory_bytes, None)
    probes = build.chosen_probes(lists, queries, exact, context.study.search.recall)
    recall = {
        kind: round(build.recall_of(lists, queries[kind][1::2], exact[kind][1::2], probes), 4) for kind in queries
    }
    return {"probes": probes, "recall": recall, "measured_on": {kind: len(q) // 2 for kind, q in queries.items()}}
