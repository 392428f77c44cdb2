"""What several stages read: posts, the vocabulary, networks, features and the partition, each from its artifact.

Letters: N posts, B of a part, D embedding width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from moe_core.data.loading import Labels, Place, open_images, open_posts, read_labels
from moe_core.data.mapped import mapped
from moe_core.data.splits import SPLITS
from moe_core.data.vocabulary import Vocabulary, load
from moe_core.engine.context import Context
from moe_core.models.resnet import ResNet, build, build_on_meta, channels_last
from moe_core.serving.bundle import decoder_of
from moe_core.settings import Network
from moe_core.stages.gate import assignment
from moe_core.store.artifact import Artifact
from moe_core.store.hashing import content_hash
from moe_core.tables.lance_tags import lance_tag_of
from moe_core.tables.location import tables_of
from moe_core.tables.reading import count_rows, read_rows, scan_rows
from moe_core.tables.vectors import vectors_in
from moe_core.training.posts import Images, Posts
from moe_core.weights import load_weights

BATCH = 65_536  # posts without their pictures, read at a time


def place(context: Context, shard: str) -> Place:
    """Where the shard's posts lie. Raises ValueError where it is not ingested."""
    return Place(shard, lance_tag_of(shard, context.need("posts", shard).version))


def places(context: Context) -> list[Place]:
    """Where the posts of all the shards lie, in the one order."""
    return [place(context, shard.key) for shard in context.shards]


def column_batches(context: Context, columns: list[str]) -> Iterator[pl.DataFrame]:
    """Columns of all the posts a part at a time, in the one order."""
    table = tables_of(context.store).posts
    for place in places(context):
        for batch in scan_rows(table, place.version, place.shard, columns, BATCH):
            yield pl.DataFrame(batch)


def count_posts(context: Context) -> int:
    """How many posts there are, from the tables' manifests alone."""
    table = tables_of(context.store).posts
    return sum(count_rows(table, place.version, place.shard) for place in places(context))


def split_batches(context: Context, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
    """Columns shard, position, id, group and split of all the posts, or some of these, in the one order, a part at a
    time."""
    with pq.ParquetFile(context.need("splits").file("splits.parquet")) as file:
        for batch in file.iter_batches(BATCH, columns=columns):
            yield pl.DataFrame(batch)


def split_numbers(context: Context) -> np.ndarray:
    """(N,) int8: the split of each post, a number in SPLITS."""
    number = {name: number for number, name in enumerate(SPLITS)}
    parts = (rows["split"].replace_strict(number, return_dtype=pl.Int8) for rows in split_batches(context, ["split"]))
    return np.concatenate([np.zeros(0, np.int8), *(part.to_numpy() for part in parts)])


def vocabulary(context: Context) -> Vocabulary:
    artifact = context.need("vocabulary")
    return load(artifact.file("hashtags.parquet"), artifact.file("synonyms.parquet"))


def ids_of(context: Context, shard: str) -> pa.Array:
    """Ids of all the posts of a shard, in the one order."""
    table, version = tables_of(context.store).posts, place(context, shard).version
    return read_rows(table, version, shard, ["id"])["id"].combine_chunks()


@dataclass(frozen=True)
class Index:
    """All the posts without their pixels: (N,) arrays in the one order."""

    split_N: np.ndarray  # int8: a number in SPLITS
    labels: Labels

    def use(self, split: str) -> np.ndarray:
        """(N,) bool: posts of a split that have something to predict."""
        return (self.split_N == SPLITS.index(split)) & self.labels.tagged_N


def index(context: Context) -> Index:
    table, arrays = tables_of(context.store).posts, context.store.layout.arrays
    return Index(split_numbers(context), read_labels(table, places(context), vocabulary(context), arrays))


def posts_where(context: Context, index: Index, wanted_N: np.ndarray) -> Posts:
    """Posts where `wanted_N`, one bool a post, holds; their images are read when they are wanted."""
    data = context.study.data
    posts = open_posts(tables_of(context.store).posts, places(context), index.labels, data.image_size)
    return replace(posts, block=data.block).subset(np.flatnonzero(wanted_N))


def training_posts(context: Context) -> Posts:
    """All posts for training that have something to predict. Of many posts the tags and places are mapped: another
    process of this machine that trains on them holds none of its own."""

    def parts() -> Iterator[tuple[np.ndarray, ...]]:
        found = index(context)
        return found.labels.parts(found.use("train"))

    key = content_hash({name: context.version(name) for name in ("splits", "vocabulary")} | {"split": "train"})
    posts_N, tags_T, starts_N1 = mapped(context.store.layout.arrays, key, ("posts", "tags", "starts"), parts)
    data, table = context.study.data, tables_of(context.store).posts
    images = replace(open_images(table, places(context), data.image_size), posts_N=posts_N)
    return Posts(images, torch.from_numpy(tags_T), torch.from_numpy(starts_N1), data.block)


def images_of(context: Context, shard: str, size: int) -> Images:
    """Images of all the posts of a shard."""
    return open_images(tables_of(context.store).posts, [place(context, shard)], size)


def shape_of(context: Context, artifact: Artifact) -> Network:
    """Of an artifact's network: the trunk's where no other is recorded."""
    shape = artifact.metadata.get("network")
    return Network.model_validate(shape) if shape else context.study.network


def network(context: Context, artifact: Artifact) -> ResNet:
    """The network of an artifact with `weights.safetensors`."""
    state, _ = load_weights(artifact.file("weights.safetensors"))
    model = build(shape_of(context, artifact), len(state["fc.bias"]), seed=0)
    model.load_state_dict(state)
    return model


def embedder(context: Context, artifact: Artifact) -> ResNet:
    """The same network without its last layer, to compute features by: that layer may be larger than all the rest."""
    state, _ = load_weights(artifact.file("weights.safetensors"))
    model = build_on_meta(shape_of(context, artifact), hashtags=1)
    model.fc = nn.Identity()  # type: ignore[assignment]
    rest = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    model.load_state_dict(channels_last(rest), assign=True)
    return model


def last_layer(artifact: Artifact) -> nn.Linear:
    """The last layer of an artifact's network."""
    state, _ = load_weights(artifact.file("weights.safetensors"))
    return decoder_of({name: state[f"fc.{name}"] for name in ("weight", "bias")})


def trunk_features(context: Context) -> Iterator[tuple[np.ndarray, slice]]:
    """((B, D) float32, their places in the one order) of all the posts, a part at a time."""
    first = 0
    for shard in context.shards:
        artifact = context.need("trunk_features", shard.key)
        for part_BD in vectors_in(artifact.folder("features.lance"), "feature"):
            yield part_BD, slice(first, first + len(part_BD))
            first += len(part_BD)


def trunk_features_where(context: Context, wanted_N: np.ndarray) -> np.ndarray:
    """(M, D) float32 of the posts where `wanted_N`, one bool a post, holds."""
    return np.concatenate([part_BD[wanted_N[rows_B]] for part_BD, rows_B in trunk_features(context)])


def held_out(context: Context, index: Index, split: str) -> np.ndarray:
    """(N,) bool: posts of a split to judge by, without those that a network that is kept was trained on: a shard that
    arrives can put an old post into another split, where it joins two groups of near-duplicates."""
    return index.use(split) & ~assigned(context, "trained")


def assigned(context: Context, column: str) -> np.ndarray:
    """(N,) a column of the assignment, such as expert or random, of all the posts in the one order."""
    partition = context.need("partition")
    parts = [assignment.read_shard(partition, shard.key, [column])[column].to_numpy() for shard in context.shards]
    return np.concatenate(parts)


def experts_of(context: Context, shard: str) -> np.ndarray:
    """(N,) int32: the number of the expert of each post of a shard."""
    return assignment.read_shard(context.need("partition"), shard, ["expert"])["expert"].to_numpy()


@dataclass(frozen=True)
class RoutedPosts:
    """N posts, their features by the trunk, and their experts by each partition."""

    posts: Posts
    features_ND: np.ndarray
    expert_N: np.ndarray
    random_N: np.ndarray  # by the random partition, the control

    def __len__(self) -> int:
        return len(self.posts)

    def expert_by(self, column: str) -> np.ndarray:
        """(N,) int64: the expert of each post by a column of the assignment, `expert` or `random`."""
        columns: Mapping[str, np.ndarray] = {"expert": self.expert_N, "random": self.random_N}
        return columns[column]

    def rows(self, rows_M: np.ndarray) -> "RoutedPosts":
        """The posts at these places; images are not read yet."""
        features_MD = self.features_ND[rows_M]
        return RoutedPosts(self.posts.subset(rows_M), features_MD, self.expert_N[rows_M], self.random_N[rows_M])


def read_routed_posts(context: Context, split: str) -> RoutedPosts:
    """Posts of a split that have a hashtag to predict and that no network was trained on; there may be none."""
    posts = index(context)
    use_N = held_out(context, posts, split)
    return RoutedPosts(
        posts_where(context, posts, use_N),
        trunk_features_where(context, use_N),
        assigned(context, "expert")[use_N],
        assigned(context, "random")[use_N],
    )
