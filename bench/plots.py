"""Plots of measurements as inline SVG, in the style of the training report (`train.plots`), whose style sheet colours them."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Final

from bench.under_test import Span
from train.plots import Axes
from train.svg import line, path, svg, text

STYLE: Final = """
:root { --s3: #7a3fa0; }
@media (prefers-color-scheme: dark) { :root { --s3: #cf9ff0; } }
.s3 { stroke: var(--s3); stroke-dasharray: 8 3 2 3; }
.m3 { fill: var(--s3); stroke: var(--panel); }
.fit { stroke: var(--s1); stroke-width: 2; stroke-dasharray: 6 4; fill: none; }
.dot { fill: var(--s0); opacity: .6; }
"""
_KINDS: Final = 4
"""Of markers, dashes and colours."""
_TICK_ROOM: Final = 24
_STEPS: Final = (1, 2, 5, 10)


@dataclass(frozen=True, slots=True)
class Series:
    """Measured values, each at its place, with its interval or without (then low and high are the value)."""

    name: str
    points: Mapping[float, Span]


def over(series: Sequence[Series], x: str, y: str, limit: float | None = None, most: float | None = None) -> str:
    """Values over something that is counted, with whiskers.

    Args:
        series: one at least; each has points.
        x: what is counted.
        y: what the values are, with their unit.
        limit: a value to draw a line at.
        most: values above it are drawn at the upper edge.
    """
    places = sorted({place for one in series for place in one.points})
    high = max(span["high"] for one in series for span in one.points.values())
    top = _top(max(high, limit or 0.0, 1e-9) if most is None else min(most, max(high, limit or 0.0, 1e-9)))
    axes = Axes((0, 0), (1.05 * places[-1], top), left=52, width=296, height=190)
    body = [_grid(axes, places, x, y)]
    if limit is not None:
        body.append(line((axes.left, axes.y(limit)), (axes.left + axes.width, axes.y(limit)), "mark"))
    below = axes.top + axes.height + 52
    told = []
    for number, one in enumerate(series):
        aside = 2.5 * (number - (len(series) - 1) / 2)
        spots = [(axes.x(place) + aside, span) for place, span in sorted(one.points.items())]
        body.append(path([(at, axes.y(min(top, span["value"]))) for at, span in spots], f"series s{number % _KINDS}"))
        for at, span in spots:
            low, up = (axes.y(min(top, span[end])) for end in ("low", "high"))
            if span["high"] > span["low"]:
                body.append(line((at, low), (at, up), "whisker"))
            body.append(_marker((at, axes.y(min(top, span["value"]))), number))
        body.append(_legend(number, below + 19 * number, one.name))
        figures = ", ".join(f"{span['value']:.4g} at {place:g}" for place, span in sorted(one.points.items()))
        told.append(f"{one.name}: {figures}")
    return svg(below + 19 * len(series) - 8, f"{y}, over {x}. " + "; ".join(told) + ".", body)


def side_by_side(rows: Mapping[str, Span], unit: str) -> str:
    """A value with its interval for each name, one below the other.

    Args:
        rows: one at least.
        unit: of the values.
    """
    top = _top(max(1e-9, *(span["high"] for span in rows.values())))
    axes = Axes((0, 0), (top, 1), left=112, width=196, top=4, height=24 * len(rows))
    bottom = axes.top + axes.height
    ticks = _ticks(0, top)
    body = [line((axes.x(value), axes.top), (axes.x(value), bottom), "grid") for value in ticks]
    body += [text((axes.x(value), bottom + 15), f"{value:g}", "tick mid") for value in ticks[::2]]
    body.append(text((axes.left + axes.width / 2, bottom + 31), unit, "axis mid"))
    told = []
    for number, (name, span) in enumerate(rows.items()):
        middle = axes.top + 12 + 24 * number
        body.append(text((axes.left - 8, middle + 4), name, "label end"))
        body.append(line((axes.x(span["low"]), middle), (axes.x(span["high"]), middle), "whisker"))
        body.append(_marker((axes.x(span["value"]), middle), 0))
        body.append(text((axes.left + axes.width + 8, middle + 4), f"{span['value']:.0f}", "value"))
        told.append(f"{name} {span['value']:.0f} ({span['low']:.0f} to {span['high']:.0f})")
    return svg(bottom + 38, f"{unit}: " + ", ".join(told) + ".", body)


def trend(hours: Sequence[float], values: Sequence[float], fit: tuple[float, float], begin: float, y: str) -> str:
    """Samples over time, and the straight line through those behind the warm-up.

    Args:
        hours: when each was taken.
        values: of the samples.
        fit: the line's value at `begin`, and its slope per hour.
        begin: end of the warm-up, hours.
        y: what the values are, with their unit.
    """
    first, slope = fit
    last = hours[-1]
    low, high = min(values), max(values)
    ends = first, first + slope * (last - begin)
    words = f"{y} over {60 * last:.0f} minutes, from {low:.4g} to {high:.4g}; the line grows by {slope:+.2f} per hour."
    low, high = min(low, *ends), max(high, *ends)
    room = max(0.05 * (high - low), 0.01 * high, 1e-9)
    axes = Axes((0, low - room), (last or 1.0, high + room), left=52, width=296, height=190)
    minutes = Axes((0, axes.low[1]), (60 * axes.high[0], axes.high[1]), left=52, width=296, height=190)
    ticks = _ticks(0, minutes.high[0])
    body = [_grid(minutes, ticks, "minutes", y)]
    body += [f'<circle class="dot" cx="{a:.1f}" cy="{b:.1f}" r="2.2"/>' for a, b in axes.points(hours, values)]
    body.append(path(axes.points((begin, last), ends), "fit"))
    return svg(axes.top + axes.height + 38, words, body)


def _top(value: float) -> float:
    """The end of an axis that holds `value`."""
    ticks = _ticks(0, value)
    return ticks[-1] if ticks[-1] >= value else 2 * ticks[-1] - ticks[-2]


def _ticks(low: float, high: float) -> list[float]:
    """At most six round numbers from `low` to `high`."""
    rough = (high - low) / 5
    scale = 10.0 ** floor(log10(rough))
    step = next(scale * part for part in _STEPS if scale * part >= 0.999 * rough)
    first = -floor(-low / step + 1e-9)
    return [step * number for number in range(first, floor(high / step + 1e-9) + 1)]


def _grid(axes: Axes, columns: Sequence[float], x: str, y: str) -> str:
    right, bottom = axes.left + axes.width, axes.top + axes.height
    parts, taken = [], -1e9
    for value in _ticks(axes.low[1], axes.high[1]):
        parts.append(line((axes.left, axes.y(value)), (right, axes.y(value)), "grid"))
        parts.append(text((axes.left - 6, axes.y(value) + 4), f"{value:g}", "tick end"))
    for value in columns:
        if axes.x(value) - taken >= _TICK_ROOM:
            taken = axes.x(value)
            parts.append(text((taken, bottom + 15), f"{value:g}", "tick mid"))
    parts.append(text((axes.left + axes.width / 2, bottom + 31), x, "axis mid"))
    middle = axes.top + axes.height / 2
    turned = f'transform="rotate(-90 11 {middle:.1f})" x="11" y="{middle:.1f}"'
    return "".join(parts) + f'<text class="axis mid" {turned}>{html.escape(y)}</text>'


def _marker(place: tuple[float, float], number: int) -> str:
    """Circle, square, triangle or diamond."""
    x, y = place
    kind = number % _KINDS
    if kind == 0:
        return f'<circle class="m0" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    if kind == 1:
        return f'<rect class="m1" x="{x - 3.6:.1f}" y="{y - 3.6:.1f}" width="7.2" height="7.2"/>'
    shape = "l4.6,9.2 h-9.2 z" if kind == 2 else "l4.8,4.8 l-4.8,4.8 l-4.8,-4.8 z"
    return f'<path class="m{kind}" d="M{x:.1f},{y - 4.7:.1f} {shape}"/>'


def _legend(number: int, y: float, words: str) -> str:
    line = path([(54, y - 4), (82, y - 4)], f"series s{number % _KINDS}")
    return line + _marker((68, y - 4), number) + text((90, y), words, "label")
