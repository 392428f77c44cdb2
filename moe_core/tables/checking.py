"""Checks that tagged rows are those that were written: lance itself does not notice a flipped byte in a pixel."""

from pathlib import Path

from moe_core.tables.versions import at, contents, matches_its_name


def damage(path: Path, lance_tag: str, shard: str, rows: int, checked: dict[str, bool]) -> list[str]:
    """Lines on what is wrong with the rows of a shard at a Lance tag, of which `rows` were written. Reads data files.

    `checked` remembers files from one call to the next, since tags share them.
    """
    try:
        table, pieces = at(path, lance_tag)
        tagged = table.tags.list()[lance_tag]["metadata"].get("rows")
    except (ValueError, OSError, KeyError) as error:
        return [f"{path}: {error}"]
    problems = []
    of_shard = pieces.get(shard, [])
    if tagged != contents(pieces, shard) or sum(piece.rows for piece in of_shard) != rows:
        problems.append(f"{path} has not the {rows} rows of {shard} that Lance tag {lance_tag} was put on")
    for piece in of_shard:
        file = path / "data" / piece.file
        if piece.file not in checked:
            checked[piece.file] = matches_its_name(file)
        if not checked[piece.file]:
            problems.append(f"{file} is not the file that was written (its name tells another SHA-256)")
    return problems
