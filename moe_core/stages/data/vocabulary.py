"""vocabulary: which hashtags are predicted, from the training posts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from moe_core.data.splits import SPLITS
from moe_core.data.vocabulary import Vocabulary, choose_from, reasons, save
from moe_core.engine.context import Context
from moe_core.stages import reading
from moe_core.store.artifact import Spec, StageOutput

KEPT_EXAMPLES, DROPPED_EXAMPLES = 25, 5  # shown in the UI; of the dropped, for each reason


def _training_posts(context: Context, columns: list[str]) -> Iterator[pl.DataFrame]:
    """Columns of the training posts, a part at a time."""
    training_N, first = reading.split_numbers(context) == SPLITS.index("train"), 0
    for batch in reading.column_batches(context, columns):
        yield batch.filter(training_N[first : first + batch.height])
        first += batch.height


def _tagged(context: Context, vocabulary: Vocabulary) -> int:
    """Training posts that carry a hashtag of the vocabulary."""
    starts = (vocabulary.compressed_rows(posts["tags"])[1] for posts in _training_posts(context, ["tags"]))
    return sum(int((np.diff(starts_N1) > 0).sum()) for starts_N1 in starts)


def make(context: Context, spec: Spec, folder: Path) -> StageOutput:
    def training() -> Iterator[pl.DataFrame]:
        read = 0
        for posts in _training_posts(context, ["tags", "user"]):
            read += posts.height
            context.report({"posts": read})
            yield posts

    kept, dropped, synonyms = choose_from(training, context.study.data, folder)
    save(folder, kept, dropped, synonyms)
    tagged = _tagged(context, Vocabulary(kept["tag"].to_list(), synonyms))
    return StageOutput(
        {
            "hashtags": kept.height,
            "dropped": dropped.height,
            "training_posts": context.need("splits").metadata["splits"]["train"],
            "tagged_training_posts": tagged,
            "tags_a_post": round(int(kept["posts"].sum()) / max(tagged, 1), 3),
            "synonyms": len(synonyms),
            "most_frequent": kept["tag"].head(20).to_list(),
            "dropped_by_reason": reasons(dropped),
            "kept_examples": _examples(kept, KEPT_EXAMPLES),
            "dropped_examples": {
                reason: _examples(dropped.filter(pl.col("reason") == reason), DROPPED_EXAMPLES)
                for reason in reasons(dropped)
            },
        }
    )


def _examples(tags: pl.DataFrame, count: int) -> list[list[Any]]:
    """[tag, posts, users] of those on the most posts."""
    return [list(row) for row in tags.head(count).select("tag", "posts", "users").iter_rows()]
