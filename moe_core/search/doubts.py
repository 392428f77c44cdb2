"""Which posts the mixture is worst at, and whose hashtags look wrong: judged from stored features, no image is read.

A hashtag of a post is suspected where the trunk and the post's expert, each alone, agree on a hashtag that the post
does not carry. How much so: how much less probable both hold it for than it is on the posts that carry it (their mean
logarithm), so that hashtags that no picture shows, such as "instagood", are no suspects on each of their posts. The
idea of a threshold of each class by its own confidence is that of confident learning (Northcutt et al., 2021).

Letters: M posts that are judged, B of a part, V hashtags, T tags of all of them, D embedding width.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

from moe_core.data.vocabulary import Vocabulary
from moe_core.errors import MissingInput
from moe_core.evaluation.answers import part_size
from moe_core.evaluation.metrics import SMALLEST, best_hashtags, cross_entropy, tag_probabilities
from moe_core.search.searcher import Searcher
from moe_core.serving.bundle import Bundle
from moe_core.store.artifact import Artifact
from moe_core.tables.vectors import vectors_at

WORK = 10**11  # multiply-adds of each network's last layer: some ten seconds on two cores
FEATURE_BYTES = 256 << 20  # of the features of those that are judged
OF_POSTS = ("loss", "given", "given_p", "agreed", "own_p", "trunk_p")
OF_TAGS = ("own", "trunk")


@dataclass(frozen=True)
class Doubt:
    """What is said of a post: the mixture's answer, and what expert and trunk say alone where they agree against it."""

    loss: float  # cross-entropy of the mixture's answer against the post's hashtags
    answer: str  # the mixture's first hashtag
    answer_p: float
    agreed: str | None  # on which trunk and expert agree and that the post does not carry
    agreed_p: tuple[float, float] | None  # by the expert, by the trunk
    suspect: str | None  # the post's hashtag that is least probable to both, for what it is on other posts
    suspect_p: tuple[float, float] | None


@dataclass(frozen=True)
class Doubts:
    """Of posts with hashtags of the mixture, at most so many as are judged in seconds, drawn at random."""

    rows_M: np.ndarray  # ascending
    tagged: int  # posts that could be judged
    hashtags: list[str]
    columns: dict[str, np.ndarray]  # (M,) each; `agreed` is -1 where trunk and expert do not agree against the post

    def worst(self, allowed_N: np.ndarray | None) -> np.ndarray:
        """Places of posts, the largest loss first."""
        return self._ordered(self.columns["loss"], allowed_N)

    def suspects(self, allowed_N: np.ndarray | None) -> np.ndarray:
        """Places of posts with a suspected hashtag, the most suspect first."""
        places = self._ordered(self.columns["score"], allowed_N)
        return places[self.columns["agreed"][places] >= 0]

    def _ordered(self, score_M: np.ndarray, allowed_N: np.ndarray | None) -> np.ndarray:
        places = np.arange(len(self.rows_M)) if allowed_N is None else np.flatnonzero(allowed_N[self.rows_M])
        return places[np.argsort(-score_M[places], kind="stable")]

    def of(self, place: int) -> Doubt:
        one = {name: column[place].item() for name, column in self.columns.items()}
        against = one["agreed"] >= 0

        def p(*names: str) -> tuple[float, float] | None:
            return (round(one[names[0]], 4), round(one[names[1]], 4)) if against else None

        return Doubt(
            round(one["loss"], 4),
            self.hashtags[one["given"]],
            round(one["given_p"], 4),
            self.hashtags[one["agreed"]] if against else None,
            p("own_p", "trunk_p"),
            self.hashtags[one["least"]] if against else None,
            p("least_own_p", "least_trunk_p"),
        )


def doubts_of(searcher: Searcher, vocabulary: Vocabulary, seed: int = 0) -> Doubts:
    """Judges the posts of a mixture. Raises MissingInput where their stored features are gone."""
    bundle, posts = searcher.bundle, searcher.table
    ids, starts = [np.zeros(0, np.int64)], [np.zeros(1, np.int64)]
    for batch in posts.select(["tags"]).to_batches():
        ids_T, starts_N1 = vocabulary.compressed_rows(pl.DataFrame(batch)["tags"])
        ids.append(ids_T)
        starts.append(starts[-1][-1] + starts_N1[1:])
    tags_T, starts_N1 = np.concatenate(ids), np.concatenate(starts)
    tagged = np.flatnonzero(np.diff(starts_N1))
    width = bundle.router.width
    most = max(1, min(WORK // (width * len(vocabulary.hashtags)), FEATURE_BYTES // (8 * width)))
    rows_M = np.sort(np.random.default_rng(seed).permutation(tagged)[:most])
    own_MD, trunk_MD = _features(searcher, rows_M)
    used_M = np.array(list(bundle.published.values()))[posts["expert"].to_numpy()[rows_M]]
    counts_M = np.diff(starts_N1)[rows_M]
    judged_N = np.zeros(len(posts), bool)
    judged_N[rows_M] = True
    tags_T = tags_T[np.repeat(judged_N, np.diff(starts_N1))]
    starts_M1 = np.concatenate([[0], counts_M.cumsum()])
    parts: list[dict[str, np.ndarray]] = []
    size = part_size(len(vocabulary.hashtags))
    for first in range(0, len(rows_M), size):
        some = slice(first, first + size)
        starts_B1 = starts_M1[first : first + size + 1]
        labels = torch.from_numpy(tags_T[starts_B1[0] : starts_B1[-1]]), torch.from_numpy(starts_B1 - starts_B1[0])
        own_BD, trunk_BD = torch.from_numpy(own_MD[some]), torch.from_numpy(trunk_MD[some])
        with torch.inference_mode():
            parts.append(_judged(bundle, own_BD, trunk_BD, torch.from_numpy(used_M[some]), *labels))
    found = {name: np.concatenate([np.zeros(0), *(part[name] for part in parts)]) for name in (*OF_POSTS, *OF_TAGS)}
    columns = {name: found[name] for name in OF_POSTS} | _suspected(tags_T, starts_M1, found["own"], found["trunk"])
    for name in ("given", "agreed", "least"):
        columns[name] = columns[name].astype(np.int64)
    return Doubts(rows_M, len(tagged), vocabulary.hashtags, columns)


def _suspected(
    tags_T: np.ndarray, starts_M1: np.ndarray, own_T: np.ndarray, trunk_T: np.ndarray
) -> dict[str, np.ndarray]:
    """Of each post the hashtag that is most suspect, and how much so."""
    log_T = np.log(np.maximum(np.maximum(own_T, trunk_T), SMALLEST))
    hashtags = int(tags_T.max(initial=-1)) + 1
    usual_V = np.bincount(tags_T, log_T, hashtags) / np.maximum(np.bincount(tags_T, minlength=hashtags), 1)
    surprise_T = usual_V[tags_T] - log_T
    owner_T = np.repeat(np.arange(len(starts_M1) - 1), np.diff(starts_M1))
    first_M = np.lexsort((-surprise_T, owner_T))[starts_M1[:-1]]  # of equal ones the first
    return {
        "least": tags_T[first_M],
        "least_own_p": own_T[first_M],
        "least_trunk_p": trunk_T[first_M],
        "score": surprise_T[first_M],
    }


def _judged(
    bundle: Bundle, own_BD: Tensor, trunk_BD: Tensor, used_B: Tensor, tags_T: Tensor, starts_B1: Tensor
) -> dict[str, np.ndarray]:
    """(B,) of OF_POSTS, (T,) of OF_TAGS, of some posts."""
    own_BV, trunk_BV = bundle.logits(own_BD), bundle.router_logits(trunk_BD)
    with_router = bundle.answer == "mixture_top1_router"
    given_BV = bundle.mixed(own_BV, trunk_BV) if with_router else bundle.probabilities(own_BV)
    own_BV, trunk_BV = bundle.probabilities(own_BV), bundle.probabilities(trunk_BV)
    given_BV = torch.where(used_B[:, None], given_BV, trunk_BV)
    best_B, own_B, trunk_B = (best_hashtags(each, 1)[:, 0] for each in (given_BV, own_BV, trunk_BV))
    owner_T = torch.repeat_interleave(torch.arange(len(own_BD)), starts_B1.diff())
    own_T, trunk_T = (tag_probabilities(each, tags_T, starts_B1) for each in (own_BV, trunk_BV))
    carried_B = torch.zeros(len(own_BD), dtype=torch.bool).index_fill_(0, owner_T[own_B[owner_T] == tags_T], True)
    against_B = (own_B == trunk_B) & ~carried_B
    row_B = torch.arange(len(own_BD))
    own_p_B, trunk_p_B = own_BV[row_B, own_B], trunk_BV[row_B, trunk_B]
    found = {
        "loss": cross_entropy(given_BV, tags_T, starts_B1),
        "given": best_B.numpy(),
        "given_p": given_BV[row_B, best_B].numpy(),
        "agreed": torch.where(against_B, own_B, -1).numpy(),
        "own_p": own_p_B.numpy(),
        "trunk_p": trunk_p_B.numpy(),
        "own": own_T.numpy(),
        "trunk": trunk_T.numpy(),
    }
    return {name: np.asarray(column, np.float64) for name, column in found.items()}


def _features(searcher: Searcher, rows_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((M, D) embeddings, (M, D) features by the trunk) of some posts, as they are stored. Raises MissingInput."""
    trunk = searcher.mixture.inputs["trunk"]
    own, by_trunk, first = [np.zeros((0, searcher.bundle.router.width), np.float32)], [], 0
    by_trunk.append(own[0])
    try:
        for artifact in searcher.embeddings:
            end = first + int(artifact.metadata["posts"])
            its = rows_M[(rows_M >= first) & (rows_M < end)] - first
            if len(its):
                own.append(vectors_at(artifact.folder("embeddings.lance"), "embedding", its))
                features = _trunk_features(searcher, artifact, trunk)
                by_trunk.append(vectors_at(features.folder("features.lance"), "feature", its))
            first = end
    except OSError as error:
        raise MissingInput(f"features of these posts were removed ({error}): `hardmoe run` makes them again") from None
    return np.concatenate(own), np.concatenate(by_trunk)


def _trunk_features(searcher: Searcher, embedded: Artifact, trunk: str) -> Artifact:
    wanted = {"trunk": trunk, "posts": embedded.inputs["posts"]}
    for artifact in searcher.store.versions("trunk_features", embedded.key):
        if wanted.items() <= artifact.inputs.items():
            return artifact
    raise MissingInput(
        f"the trunk's features of shard {embedded.key} are not in the store any more: `hardmoe run` makes them again",
        "trunk_features",
        embedded.key,
    )
