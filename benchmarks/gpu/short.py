"""Prints results.jsonl, read from standard input, in short: a line per measurement."""

import json
import sys


def main() -> None:
    for line in sys.stdin:
        record = json.loads(line)
        part, what, *_ = (record.pop(name, None) for name in ("part", "what", "on", "at"))
        print(part, f"{what}:", " ".join(f"{key}={value}" for key, value in record.items())[:150])


if __name__ == "__main__":
    main()
