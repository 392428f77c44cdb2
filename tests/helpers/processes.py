"""Processes of a study."""


def mentions(environ, text):
    try:
        return text.encode() in environ.read_bytes()
    except OSError:
        return False
