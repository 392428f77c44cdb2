"""Whether the rows of a pin are those that were written: lance itself does not notice a flipped byte in a pixel."""

from pathlib import Path

from moe_core.tables.versions import at, contents, is_what_it_says


def damage(path: Path, pin: str, shard: str, rows: int, checked: dict[str, bool]) -> list[str]:
    """What is wrong with the rows of a shard at a pin, of which `rows` were written. Every data file is read whole.

    `checked` remembers files from one call to the next: pins share them.
    """
    try:
        table, pieces = at(path, pin)
        said = table.tags.list()[pin]["metadata"].get("rows")
    except (ValueError, OSError, KeyError) as error:
        return [f"{path}: {error}"]
    found = []
    mine = pieces.get(shard, [])
    if said != contents(pieces, shard) or sum(piece.rows for piece in mine) != rows:
        found.append(f"{path} has not the {rows} rows of {shard} that pin {pin} was put on")
    for piece in mine:
        file = path / "data" / piece.file
        if piece.file not in checked:
            checked[piece.file] = is_what_it_says(file)
        if not checked[piece.file]:
            found.append(f"{file} is not the file that was written (its name tells another SHA-256)")
    return found
