"""Text of users, made fit for a terminal."""

MOST = 60


def shown(text: object, most: int = MOST) -> str:
    """On one line, without control characters or marks that turn the line around, of at most `most` characters."""
    said = str(text)
    if len(said) > most:
        said = said[: most - 1] + "…"
    # U+200D joins emoji and is harmless
    return "".join(c if c.isprintable() or c == "‍" else c.encode("unicode_escape").decode() for c in said)
