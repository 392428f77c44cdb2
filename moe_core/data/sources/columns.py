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
        "original": "url image_url original_url photo_url download_url source_url",
    }.items()
}
NAMED = 50  # columns listed in an error
NO_SPLIT = "#none"  # as source.split_column: neither a column nor file names give splits
NO_TAGS = "#none"  # as source.tags_column: pictures alone are read
BY_ROW = "#row"  # as source.id_column: the shard's key and the number of the row


def choose(names: Sequence[str], source: Source, where: str) -> dict[str, str]:
    """Column for each of ours that the table has. Raises BadSource, naming the columns, where a needed one is missing.

    With a caption_column, a tags column is read only where it is named.
    """
    present = ", ".join(shown(name) for name in names[:NAMED]) or "none"
    lower = {str(name).lower(): name for name in reversed(names)}
    chosen: dict[str, str] = {}
    for ours, usual in USUAL.items():
        named = getattr(source, f"{ours}_column")
        if (ours, named) in (("split", NO_SPLIT), ("tags", NO_TAGS)):
            continue
        if named:
            if named not in names and not (ours == "id" and named == BY_ROW):
                raise BadSource(f"{where} has no column {named} (source.{ours}_column): it has {present}")
            chosen[ours] = named
        elif ours == "tags" and source.caption_column:
            continue
        else:
            # a file name may be the id
            others = [name for other, name in chosen.items() if (other, ours) != ("id", "image")]
            first = next((lower[name] for name in usual if name in lower and lower[name] not in others), None)
            if first is not None:
                chosen[ours] = first
    if source.caption_column:
        if source.caption_column not in names:
            raise BadSource(f"{where} has no column {source.caption_column} (source.caption_column): it has {present}")
        chosen["caption"] = source.caption_column
    missing = [
        f"{' or '.join(USUAL[name][:2] if name == 'tags' else USUAL[name][:1])} (source.{name}_column)"
        for name in ("image", "tags")
        if name not in chosen and not (name == "tags" and ("caption" in chosen or source.tags_column == NO_TAGS))
    ]
    if missing:
        raise BadSource(f"{where} has no column {', '.join(missing)}: it has {present}")
    return chosen
