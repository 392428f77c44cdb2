"""What several stages read: posts, the vocabulary, networks, features and the partition, each from its artefact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_core.stages.context import Context
from moe_core.store import Artefact

if TYPE_CHECKING:
    import polars as pl

    from moe_core.data.loading import Place
    from moe_core.data.vocabulary import Vocabulary
    from moe_core.models.resnet import ResNet
    from moe_core.training.batches import Posts


def places(context: Context) -> list[Place]:
    """Where the shards' posts lie. Raises ValueError for the first that is not ingested."""
    from moe_core.data.loading import Place

    return [Place(s.key, context.need("posts", s.key).metadata["posts_version"]) for s in context.shards]


def all_columns(context: Context, columns: list[str]) -> pl.DataFrame:
    """Columns of all the posts, in the one order that every stage uses."""
    from moe_core.data.loading import read_columns

    return read_columns(context.root, places(context), columns)


def splits(context: Context) -> pl.DataFrame:
    """Columns shard, position, id, group and split of all the posts, in the one order."""
    import polars as pl

    return pl.read_parquet(context.need("splits").file("splits.parquet"))


def vocabulary(context: Context) -> Vocabulary:
    from moe_core.data.vocabulary import load

    artefact = context.need("vocabulary")
    return load(artefact.file("hashtags.parquet"), artefact.file("synonyms.parquet"))


def posts_where(context: Context, wanted: np.ndarray) -> Posts:
    """Posts with pixels where `wanted`, one bool a post, holds."""
    from moe_core.data.loading import load_posts

    return load_posts(context.root, places(context), vocabulary(context), context.study.data.image_size, wanted)


@dataclass(frozen=True)
class Index:
    """All the posts without their pixels: (N,) arrays in the one order."""

    split: np.ndarray
    tagged: np.ndarray  # bool: carries a hashtag of the vocabulary

    def use(self, split: str) -> np.ndarray:
        """(N,) bool: posts of a split that have something to predict."""
        return (self.split == split) & self.tagged


def index(context: Context) -> Index:
    from moe_core.data.loading import tagged

    tags = all_columns(context, ["tags"])["tags"]
    return Index(splits(context)["split"].to_numpy(), tagged(tags, vocabulary(context)))


def network(context: Context, artefact: Artefact) -> ResNet:
    """The network of an artefact with `weights.safetensors`."""
    from moe_core.models.resnet import build
    from moe_core.weights import load_weights

    state, _ = load_weights(artefact.file("weights.safetensors"))
    model = build(context.study.network, len(state["fc.bias"]), seed=0)
    model.load_state_dict(state)
    return model


def trunk_features(context: Context) -> np.ndarray:
    """(N, D) float32 of all the posts, in the one order."""
    from moe_core.tables import read_vectors

    parts = []
    for shard in context.shards:
        artefact = context.need("trunk_features", shard.key)
        parts.append(read_vectors(artefact.path / "features.lance", "feature"))
    return np.concatenate(parts)


def assignment(context: Context) -> pl.DataFrame:
    """Columns shard, id, split, expert and random of all the posts, in the one order."""
    import polars as pl

    return pl.read_parquet(context.need("partition").file("assignment.parquet"))
