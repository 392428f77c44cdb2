"""What is known of the study's posts once splits and vocabulary are there, for advice before anything is trained."""

from moe_core.advice import Seen, warnings
from moe_core.engine.context import Context
from moe_core.errors import HardmoeError


def seen(context: Context) -> Seen:
    """Counts of posts with a hashtag of the vocabulary, by its share of the training posts. Raises ValueError where
    splits or vocabulary are missing."""
    import polars as pl

    splits, vocabulary = context.need("splits").metadata["splits"], context.need("vocabulary")
    counts = vocabulary.metadata
    posts_V = pl.read_parquet(vocabulary.file("hashtags.parquet"), glob=False)["posts"]
    read = max(counts["training_posts"], 1)
    tagged = max(counts["tagged_training_posts"], 1)
    share = tagged / read
    return Seen(
        posts=round(share * sum(splits[name] for name in ("train", "validation", "test", "router"))),
        tags_a_post=posts_V.sum() / tagged,
        distinct_tags=counts["hashtags"],
        train=round(share * splits["train"]),
        validation=round(share * splits["validation"]),
        top_share=min(1.0, float(str(posts_V.max())) / tagged),
    )


def warnings_of(context: Context) -> list[str]:
    """What is likely to disappoint, a line each; none as long as splits or vocabulary are missing."""
    try:
        return warnings(seen(context), context.study)
    except (HardmoeError, OSError):
        return []
