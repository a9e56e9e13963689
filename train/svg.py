"""The few marks that our drawings are made of, as SVG text. Places are x and y in units of the drawing."""

import html
from collections.abc import Iterable, Sequence
from typing import Final

WIDTH: Final = 360
"""Of every drawing."""


def svg(height: float, words: str, body: Iterable[str]) -> str:
    """A drawing; `words` say to a screen reader what it shows."""
    opening = f'<svg class="plot" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{html.escape(words)}">'
    return f"{opening}{''.join(body)}</svg>"


def line(start: tuple[float, float], end: tuple[float, float], style: str) -> str:
    """A straight line."""
    return f'<line class="{style}" x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>'


def text(place: tuple[float, float], words: str, style: str) -> str:
    """Words."""
    return f'<text class="{style}" x="{place[0]:.1f}" y="{place[1]:.1f}">{html.escape(words)}</text>'


def path(points: Sequence[tuple[float, float]], style: str) -> str:
    """A line through points."""
    return f'<path class="{style}" d="M{" L".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'
