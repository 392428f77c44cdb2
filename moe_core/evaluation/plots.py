"""Plots as SVG text: the same in the report, where they are part of the page, and in Dagster's UI, as a data URI.

Colors are of middle brightness, so that a plot can be read on a light page and on a dark one.
"""

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

GREY, BLUE, ORANGE, GREEN, RED = "#7d8590", "#3f7fbf", "#c8792b", "#3a9362", "#c4524d"
PURPLE, TEAL, OLIVE, PINK = "#8264b5", "#2f9391", "#8a8232", "#b85a92"
WIDTH, HEIGHT = 460, 220  # units of a plot with axes; a phone shows it at three quarters of that
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 26, 34  # margins; names stand in the upper one, at HEAD
HEAD = 12
POINTS = 160  # of a line at most
ROW = 20  # height of a row of `bars` and `intervals`


@dataclass(frozen=True)
class Line:
    """A curve of (x, y) points."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str = BLUE
    width: float = 1.8
    opacity: float = 1.0


def lines(curves: Sequence[Line], x: str, y: str, marks: Sequence[tuple[float, str]] = ()) -> str:
    """Curves over one pair of axes; a legend names each name once. Raises ValueError where there is no point.

    `marks` are named places of the x axis, as of a logarithmic one; round numbers where there are none.
    """
    curves = [Line(c.name, thinned(c.points), c.color, c.width, c.opacity) for c in curves]
    every = [point for curve in curves for point in curve.points]
    if not every:
        raise ValueError("no curve has a point: nothing to plot")
    (x_low, x_high), (y_low, y_high) = (_range([p[axis] for p in every]) for axis in (0, 1))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    across, down = _scale(x_low, x_high, LEFT, right), _scale(y_low, y_high, bottom, TOP)
    parts = []
    for value in ticks(y_low, y_high):
        at = down(value)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{right}" stroke="{GREY}" stroke-opacity=".25"/>')
        parts.append(_text(LEFT - 6, at + 4, short(value), "end"))
    marks = marks or [(value, short(value)) for value in ticks(x_low, x_high)]
    parts += [_text(across(at), bottom + 15, name, "middle") for at, name in marks]
    parts.append(_text((LEFT + right) / 2, HEIGHT - 3, x, "middle"))
    for curve in curves:
        path = " ".join(f"{across(x_at):.1f},{down(y_at):.1f}" for x_at, y_at in curve.points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{curve.color}" stroke-width="{curve.width}" '
            f'stroke-opacity="{curve.opacity}" stroke-linejoin="round"/>'
        )
    at = right
    for name, color in reversed({c.name: c.color for c in curves if c.name}.items()):
        parts.append(_text(at, HEAD, name, "end", color))
        at -= 7 * len(name) + 14
    return _svg(WIDTH, HEIGHT, f"{y} over {x}", [_text(2, HEAD, y, "start"), *parts])


def intervals(rows: Sequence[tuple[str, float, Sequence[float], bool]], about: str) -> str:
    """A dot with its interval for each row (name, value, (low, high), marked)."""
    low, high = _range([end for _, _, interval, _ in rows for end in interval])
    left, right = 14 + 6.6 * max(len(name) for name, *_ in rows), WIDTH - 46
    across = _scale(low, high, left, right)
    parts = []
    for number, (name, value, (least, most), marked) in enumerate(rows):
        at, color = 14 + number * ROW, GREEN if marked else BLUE
        weight = "bold" if marked else "normal"
        parts.append(_text(left - 10, at + 4, name, "end", size=10.5, weight=weight))
        parts.append(f'<path d="M{left:.1f} {at}H{right}" stroke="{GREY}" stroke-opacity=".18"/>')
        parts.append(f'<path d="M{across(least):.1f} {at}H{across(most):.1f}" stroke="{color}" stroke-width="2.5"/>')
        parts.append(f'<circle cx="{across(value):.1f}" cy="{at}" r="4" fill="{color}"/>')
        parts.append(_text(WIDTH - 2, at + 4, f"{value:.3f}", "end", weight=weight))
    return _svg(WIDTH, len(rows) * ROW + 8, about, parts)


def bars(rows: Sequence[tuple[str, float]], about: str, form: str = "{:,.0f}") -> str:
    """A bar to the right of zero, or to the left, for each row (name, value)."""
    low, high = min(0.0, *(v for _, v in rows)), max(0.0, *(v for _, v in rows))
    left, right = 12 + 6.2 * max(len(name) for name, _ in rows), WIDTH - 70
    across = _scale(low, high if high > low else 1.0, left, right)
    parts = []
    for number, (name, value) in enumerate(rows):
        at = 4 + number * ROW
        begin, end = sorted((across(0), across(value)))
        parts.append(_text(left - 8, at + 12, name, "end"))
        color = RED if value < 0 else BLUE
        parts.append(f'<rect x="{begin:.1f}" y="{at}" width="{end - begin:.1f}" height="14" rx="2" fill="{color}"/>')
        parts.append(_text(WIDTH - 2, at + 12, form.format(value), "end"))
    return _svg(WIDTH, len(rows) * ROW + 6, about, parts)


def matrix(counts: Sequence[Sequence[int]], rows: Sequence[str], columns: Sequence[str], about: str) -> str:
    """A square for each count, the darker the larger its share of its row; the count in it where there is room."""
    left = 12 + 6.6 * max(len(name) for name in rows)
    side = max(6.0, min(34.0, (WIDTH - left - 4) / len(columns)))
    parts = []
    for across, name in enumerate(columns):
        if side >= 28:
            parts.append(_text(left + (across + 0.5) * side, 12, name, "middle", size=9.5))
    for down, (name, counted) in enumerate(zip(rows, counts, strict=True)):
        top, total = 18 + down * side, max(sum(counted), 1)
        parts.append(_text(left - 6, top + side / 2 + 4, name, "end", size=min(10.5, side)))
        for across, count in enumerate(counted):
            at = left + across * side
            parts.append(
                f'<rect x="{at:.1f}" y="{top:.1f}" width="{side - 1:.1f}" height="{side - 1:.1f}" fill="{BLUE}" '
                f'fill-opacity="{0.06 + 0.6 * count / total:.2f}"/>'
            )
            if count and side >= 28:
                parts.append(_text(at + side / 2, top + side / 2 + 4, short(count), "middle", size=9))
    return _svg(WIDTH, round(22 + len(rows) * side), about, parts)


def sparkline(points: Sequence[tuple[float, float]], about: str) -> str:
    """A curve without axes, to stand in a line of text."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in _placed(thinned(points, 40), 1, 78, 19, 18))
    line = f'<polyline points="{path}" fill="none" stroke="{BLUE}" stroke-width="1.5" stroke-linejoin="round"/>'
    return _svg(80, 20, about, [line])


def share_line(points: Sequence[tuple[float, float]], about: str) -> str:
    """A curve of shares over shares in a square of both from 0 to 1, to stand in a line of text."""
    path = " ".join(f"{1 + 38 * x:.1f},{39 - 38 * y:.1f}" for x, y in points)
    square = f'<path d="M1 1H39V39H1Z" fill="none" stroke="{GREY}" stroke-opacity=".35"/>'
    line = f'<polyline points="{path}" fill="none" stroke="{BLUE}" stroke-width="1.5" stroke-linejoin="round"/>'
    return _svg(40, 40, about, [square, line])


def glance(points: Sequence[tuple[float, float]], about: str) -> str:
    """A curve with its first and last value and no axes, in so few characters that its data URI has less than 1,000."""
    points = thinned(points, 36)
    path = " ".join(f"{x:.0f} {y:.0f}" for x, y in _placed(points, 50, 190, 66, 62))
    first, last = short(points[0][1]), short(points[-1][1])
    return (
        "<svg xmlns='http://www.w3.org/2000/svg' width='300' height='70' font-size='12' font-family='sans-serif' "
        f"fill='{GREY}'><title>{escape(about)}</title><path d='M{path}' fill='none' stroke='{BLUE}' stroke-width='2'/>"
        f"<text y='14'>{first}</text><text x='248' y='66'>{last}</text></svg>"
    )


def data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def thinned(points: Sequence[tuple[float, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """The curve with at most `most` points: neighbors become their mean."""
    if len(points) <= most:
        return list(points)
    means = []
    for number in range(most):
        some = points[number * len(points) // most : (number + 1) * len(points) // most]
        means.append((sum(x for x, _ in some) / len(some), sum(y for _, y in some) / len(some)))
    return means


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`: steps of 1, 2 or 5 times a power of ten, three to six of them."""
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """1500000 as 1.5M, 12000 as 12k, 0.25 as it is."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.3g}"


def _placed(
    points: Sequence[tuple[float, float]], left: int, width: int, bottom: int, height: int
) -> list[tuple[float, float]]:
    """The points of one curve in a box of the plot, which they fill."""
    (x_low, x_high), (y_low, y_high) = (_range([p[axis] for p in points]) for axis in (0, 1))
    across, down = _scale(x_low, x_high, left, left + width), _scale(y_low, y_high, bottom, bottom - height)
    return [(across(x), down(y)) for x, y in points]


def _scale(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    """Where on an axis from `first` to `last` a value from `low` to `high` lies."""
    return lambda value: first + (value - low) / (high - low) * (last - first)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Range of an axis: a little on both sides where all values are equal."""
    low, high = min(values), max(values)
    if low == high:
        return low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    return low, high


def _text(
    x: float, y: float, text: str, anchor: str, color: str = GREY, size: float = 11.5, weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}" font-size="{size}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )


def _svg(width: int, height: int, about: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" role="img" aria-label="{escape(about)}">'
    )
    return head + "".join(parts) + "</svg>"
