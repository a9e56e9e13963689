"""Pieces of HTML that the sections of the report share."""

from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files


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


def edges(spans: Iterable[Mapping[str, float]]) -> tuple[float, float]:
    """Edges of drawn intervals, of which there may be one that is a point."""
    kept = list(spans)
    low, high = min(span["low"] for span in kept), max(span["high"] for span in kept)
    return (low, high) if high > low else (low - 0.01, high + 0.01)


def section(anchor: str, heading: str, content: str) -> str:
    """A section under a heading of its own."""
    return f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(heading)}</h2>{content}</section>'


def sectioned(title: str, summary: str, sections: Mapping[str, str], notes: Iterable[str], footer: str) -> str:
    """A page of a comparison with a section for each set of clips, and notes behind them; all are listed on top.

    Args:
        title: of the page, and its heading.
        summary: below the heading, as text.
        sections: heading as text -> content as HTML.
        notes: of the last section, as text.
        footer: how to read it, as text.
    """
    listed = "".join(f"<li>{escape(line)}</li>" for line in notes)
    anchors = {f"set-{number}": name for number, name in enumerate(sections)}
    shown = [section(anchor, name, sections[name]) for anchor, name in anchors.items()]
    shown.append(section("notes", "Notes", f'<ul class="findings">{listed}</ul>'))
    return document(title, summary, {**anchors, "notes": "Notes"}, "".join(shown), footer)


def document(title: str, summary: str, contents: Mapping[str, str], main: str, footer: str) -> str:
    """A page of a comparison that needs nothing else: no script, no font, no file beside it.

    Args:
        title: of the page, and its heading.
        summary: below the heading, as text.
        contents: anchor -> heading of the sections that are listed on top; none lists none.
        main: the sections, as HTML.
        footer: how to read it, as text.
    """
    style = files("train").joinpath("report.css").read_text(encoding="utf-8")
    items = "".join(f'<li><a href="#{anchor}">{escape(name)}</a></li>' for anchor, name in contents.items())
    nav = f'<nav aria-label="Contents"><ul>{items}</ul></nav>' if items else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><p>{escape(summary)}</p>{nav}</header>"
        f"<main>{main}</main><footer>{escape(footer)}</footer></body></html>\n"
    )
