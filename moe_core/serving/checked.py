"""JSON from elsewhere as frozen dataclasses, each field checked: what pydantic does for settings, in its words, where a
machine that only answers has no pydantic.

A field says what it takes: `side: Annotated[int, whole(8, 1024)]`. Types are strict: no text is read as a number.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from moe_core.text import shown

Check = Callable[[Any], Any]  # gives the value as the field has it, or raises Mistake
T = TypeVar("T")


class Mistake(Exception):
    """The first value that is not as wanted; its text says where it stands, what is wanted and what is there."""

    def __init__(self, why: str, came: Any = None) -> None:
        super().__init__(why)
        self.why, self.came = why, came
        self.where: list[str] = []  # names of keys, the innermost first

    def __str__(self) -> str:
        where = ".".join(map(shown, reversed(self.where)))
        if self.why == MISSING:
            return f"{where} {MISSING}"
        came = "" if isinstance(self.came, dict) else f", it is {shown(repr(self.came))}"
        return shown(f"{where}: {self.why}" if where else self.why, 300) + came


MISSING = "is missing"


def table(kind: type[T], more_keys: bool = True) -> Callable[[Any], T]:
    """A dataclass whose fields have checks; `more_keys`: keys that it does not know are left to later versions.

    A ValueError of its __post_init__ is a mistake, too.
    """
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    checks: dict[str, Check] = {field.name: field.type.__metadata__[0] for field in fields}  # type: ignore[union-attr]
    needed = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}

    def check(value: Any) -> T:
        if not isinstance(value, dict):
            raise Mistake(f"Input should be a valid dictionary or instance of {kind.__name__}", value)
        values = {}
        for name, of_field in checks.items():
            with _within(name):
                if name in value:
                    values[name] = of_field(value[name])
                elif name in needed:
                    raise Mistake(MISSING)
        for name in () if more_keys else sorted(value.keys() - checks.keys()):
            with _within(name):
                raise Mistake("Extra inputs are not permitted", value[name])
        try:
            return kind(**values)
        except ValueError as error:
            raise Mistake(str(error), value) from None

    return check


def tables(name: Check, value: Check, fewest: int = 0, most: int | None = None) -> Check:
    """A dictionary of so many entries."""

    def check(entries: Any) -> dict[Any, Any]:
        if not isinstance(entries, dict):
            raise Mistake("Input should be a valid dictionary", entries)
        if len(entries) < fewest:
            raise Mistake(
                f"Dictionary should have at least {fewest} item after validation, not {len(entries)}", entries
            )
        if most is not None and len(entries) > most:
            raise Mistake(f"Dictionary should have at most {most} items after validation, not {len(entries)}", entries)
        checked = {}
        for key, entry in entries.items():
            with _within(key):
                checked_key = name(key)  # before its value
                checked[checked_key] = value(entry)
        return checked

    return check


def several(each: Check) -> Check:
    """A list, as a tuple."""

    def check(values: Any) -> tuple[Any, ...]:
        if not isinstance(values, list):
            raise Mistake("Input should be a valid tuple", values)
        checked = []
        for place, value in enumerate(values):
            with _within(str(place)):
                checked.append(each(value))
        return tuple(checked)

    return check


def text(pattern: str | None = None, most: int | None = None) -> Check:
    """A text of at most `most` characters, all of which the pattern matches."""

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise Mistake("Input should be a valid string", value)
        if most is not None and len(value) > most:
            raise Mistake(f"String should have at most {most} characters", value)
        if pattern is not None and not re.fullmatch(pattern, value):
            raise Mistake(f"String should match pattern '^{pattern}$'", value)
        return value

    return check


def choice(*allowed: str) -> Check:
    """One of some texts."""
    quoted = [f"'{each}'" for each in allowed]
    wanted = f"{', '.join(quoted[:-1])} or {quoted[-1]}" if len(quoted) > 1 else quoted[0]

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise Mistake(f"Input should be {wanted}", value)
        return value

    return check


def yes_or_no(value: Any) -> bool:
    """A bool."""
    if not isinstance(value, bool):
        raise Mistake("Input should be a valid boolean", value)
    return value


def whole(least: int, most: int | None = None) -> Check:
    """A whole number within bounds."""

    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise Mistake("Input should be a valid integer", value)
        _check_bounds(value, least, most)
        return value

    return check


def number(least: float | None = None, most: float | None = None, above: float | None = None) -> Check:
    """A finite number within bounds, as a float."""

    def check(value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise Mistake("Input should be a valid number", value)
        try:
            finite = math.isfinite(value)
        except OverflowError:
            finite = False
        if not finite:
            raise Mistake("Input should be a finite number", value)
        if above is not None and value <= above:
            raise Mistake(f"Input should be greater than {above:g}", value)
        _check_bounds(value, least, most)
        return float(value)

    return check


def _check_bounds(value: float, least: float | None, most: float | None) -> None:
    if least is not None and value < least:
        raise Mistake(f"Input should be greater than or equal to {least}", value)
    if most is not None and value > most:
        raise Mistake(f"Input should be less than or equal to {most}", value)


@contextmanager
def _within(name: Any) -> Iterator[None]:
    """Notes under which name a mistake stands."""
    try:
        yield
    except Mistake as mistake:
        mistake.where.append(name)
        raise
