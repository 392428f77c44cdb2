"""Odd ids, and the forms in which encoders leave them."""

import html
import json
from urllib.parse import quote

ODD = {
    "accent": "café-1",
    "quote": 'a"b-123456',
    "backslash": "back\\slash-99",
    "windows": "C:\\new\\temp1",
    "line end": "line\nend-77",
    "line separator": "\u2028sep-12345",
    "leading space": " leading-1",
    "emoji": "cat🐱",
    "one letter": "é",
    "600 characters": "x" * 599 + "1",
    "digits": "0012345678",
    "backslash at its end": "tail-of-1\\",
    "percent": "100%25-off",
    "entity": "&amp;id-1234",
    "a name that is no UTF-8": "\udce9-name-1",
}


def plain(text):
    return text.encode("utf-8", "surrogatepass")


FORMS = {
    "plain": plain,
    "JSON": lambda text: json.dumps(text).encode(),
    "JSON in JSON": lambda text: json.dumps(json.dumps({"a": [text]})).encode(),
    "JSON in JSON in JSON": lambda text: json.dumps(json.dumps(json.dumps([text]))).encode(),
    "JSON with upper case": lambda text: json.dumps(text).replace("\\u00e9", "\\u00E9").encode(),
    "JSON of UTF-8": lambda text: plain(json.dumps(text, ensure_ascii=False)),
    "repr": lambda text: plain(repr(text)),
    "ascii": lambda text: ascii(text).encode(),
    "repr of bytes": lambda text: repr(plain(text)).encode(),
    "percent": lambda text: quote(text, safe="", errors="surrogatepass").encode(),
    "percent of percent": lambda text: quote(quote(text, safe="", errors="surrogatepass")).encode(),
    "HTML": lambda text: plain(html.escape(text)),
    "HTML numbers": lambda text: "".join(f"&#{ord(c)};" for c in text).encode(),
    "HTML hexadecimal": lambda text: "".join(f"&#x{ord(c):X};" for c in text).encode(),
}
