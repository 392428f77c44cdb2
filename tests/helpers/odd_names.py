"""Names that some library reads as a pattern, a URL or an option."""

from moe_core.data.synthetic import synthetic_posts

ODD = "é [1] %20 #~ ?x *"
TITLE = "\x1b]0;owned\x07\u202e\x9b2J"  # sets a terminal's title, turns the line around, clears the screen
FOLDER, FILE = f"{ODD} {TITLE}\nError: forged", f"{ODD} {TITLE}"


def png(number=0):
    return next(synthetic_posts(0, 1, number + 1, seed=5)).to_pylist()[number]["image"]
