"""A finished mixture outside the pipeline: the bundle and its answers."""
