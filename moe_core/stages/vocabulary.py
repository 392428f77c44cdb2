"""vocabulary: which hashtags are predicted, from the training posts."""

from pathlib import Path
from typing import Any

from moe_core.settings import Study
from moe_core.stages import reading
from moe_core.stages.context import Context
from moe_core.stages.stage import Stage
from moe_core.store import Written, file_digest


def _settings(study: Study) -> Any:
    """The files of stop tags and synonyms count by their content."""
    said = study.data.model_dump(include={"min_posts_per_tag", "min_users_per_tag", "max_tags"})
    for name in ("stop_tags", "synonyms"):
        path = Path(getattr(study.data, name) or ".")
        said[name] = file_digest(path) if path.is_file() else ""
    return said


def _make(context: Context, key: str | None, folder: Path) -> Written:
    import polars as pl

    from moe_core.data.vocabulary import choose, save

    posts = reading.all_columns(context, ["tags", "user"]).with_columns(reading.splits(context)["split"])
    training = posts.filter(pl.col("split") == "train")
    if training.is_empty():
        raise ValueError("no training post is left: look at the rejects, data.test, data.validation and data.router")
    kept, dropped, synonyms = choose(training, context.study.data)
    save(folder, kept, dropped, synonyms)
    return Written(
        {
            "hashtags": kept.height,
            "dropped": dropped.height,
            "training_posts": training.height,
            "most_frequent": kept["tag"].head(20).to_list(),
            "dropped_by_reason": dict(dropped["reason"].value_counts().sort("reason").iter_rows()),
        }
    )


VOCABULARY = Stage(
    name="vocabulary",
    keys=None,
    code="1",
    reads=("posts", "splits"),
    settings=_settings,
    inputs=lambda context, key: {"splits": context.version("splits")},
    make=_make,
)
