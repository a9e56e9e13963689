"""Pieces of HTML that the sections of the report share."""

from collections.abc import Iterable, Mapping
from html import escape


def span(value: Mapping[str, float] | None, signed: bool = False) -> str:
    """A value with its 95 % interval; "-" for none."""
    if value is None:
        return "-"
    sign = "+" if signed else ""
    limits = f"[{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"
    return f'<span class="estimate">{value["value"]:{sign}.3f} <span class="range">{limits}</span></span>'


def figure(title: str, note: str, content: str) -> str:
    """A titled panel; the note says how to read it."""
    small = f"<small>{escape(note)}</small>" if note else ""
    return f'<figure class="panel"><figcaption>{escape(title)}{small}</figcaption>{content}</figure>'


def wide(caption: str, head: str, rows: Iterable[str], kind: str = "") -> str:
    """A table that scrolls sideways by itself, by touch and by keyboard."""
    label = f' role="region" aria-label="{escape(caption or "table")}" tabindex="0"'
    told = f"<caption>{escape(caption)}</caption>" if caption else ""
    table = f"<table>{told}<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="wide {kind}"{label}>{table}</div>'
