"""Which column of a table is which of ours: by setting, else by the names that are usual."""

from collections.abc import Sequence

from moe_core.errors import BadSource
from moe_core.settings import Source
from moe_core.text import shown

USUAL = {
    ours: tuple(names.split())
    for ours, names in {
        "id": "id post_id photo_id photoid image_id imageid media_id shortcode key __key__",
        "image": "image img picture photo image_bytes jpg jpeg png webp "
        "file filename file_name path filepath file_path image_path image_file image_name",
        "tags": "tags raw_tags hashtags hash_tags tag_list labels keywords tag label",
        "user": "user user_id userid owner owner_id author author_id username user_name",
        "taken_at": "taken_at date_taken datetaken taken created_at timestamp datetime date_time date time",
        "split": "split subset fold",
    }.items()
}
NAMED = 50  # columns listed in an error
NO_SPLIT = "#none"  # as source.split_column: neither a column nor the names of files give splits
BY_ROW = "#row"  # as source.id_column: the shard's key and the number of the row


def choose(names: Sequence[str], source: Source, where: str) -> dict[str, str]:
    """Column for each of ours that is there. Raises BadSource with what is missing and what is there.

    A caption_column makes the tags column one that is read only where it was named.
    """
    there = ", ".join(shown(name) for name in names[:NAMED]) or "none"
    lower = {str(name).lower(): name for name in reversed(names)}
    found: dict[str, str] = {}
    for ours, usual in USUAL.items():
        said = getattr(source, f"{ours}_column")
        if ours == "split" and said == NO_SPLIT:
            continue
        if said:
            if said not in names and not (ours == "id" and said == BY_ROW):
                raise BadSource(f"{where} has no column {said} (source.{ours}_column): it has {there}")
            found[ours] = said
        elif ours == "tags" and source.caption_column:
            continue
        else:
            others = [name for mine, name in found.items() if (mine, ours) != ("id", "image")]  # a name may be the id
            first = next((lower[name] for name in usual if name in lower and lower[name] not in others), None)
            if first is not None:
                found[ours] = first
    if source.caption_column:
        if source.caption_column not in names:
            raise BadSource(f"{where} has no column {source.caption_column} (source.caption_column): it has {there}")
        found["caption"] = source.caption_column
    missing = [
        f"{' or '.join(USUAL[name][:2] if name == 'tags' else USUAL[name][:1])} (source.{name}_column)"
        for name in ("image", "tags")
        if name not in found and not (name == "tags" and "caption" in found)
    ]
    if missing:
        raise BadSource(f"{where} has no column {', '.join(missing)}: it has {there}")
    return found
