"""One page with the plots of what the benchmarks wrote with --json.

    python -m bench.report streams.json fleet.json impairment.json soak.json chaos.json --out report.html

The page is one file without script, and opens without a network. What an option of a benchmark left out is left out here.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Final

import numpy as np

import train.html_parts
from bench.document import Document, DocumentError, Row, read
from bench.plots import STYLE, Series, over, side_by_side, trend
from bench.soak import growth, settled
from bench.under_test import Span, told
from train.html_parts import figure, wide

_LIMIT_MS: Final = 500.0
_EDGE_MS: Final = 2000.0
_INTERVALS: Final = "Whiskers are 95 % intervals (bootstrap over utterances)."


def page(documents: Sequence[Document]) -> str:
    """The page, HTML.

    Raises:
        DocumentError: if a document is of a program that has no plots.
    """
    known = {"streams": streams_part, "impairment": impairment_part, "soak": soak_part, "chaos": chaos_part}
    if strange := sorted({document.program for document in documents} - set(known)):
        raise DocumentError(f"there are no plots of {', '.join(strange)}; there are some of {', '.join(known)}")
    sections = []
    for program, part in known.items():
        if chosen := [document for document in documents if document.program == program]:
            sections.append(part(chosen))
    css = Path(train.html_parts.__file__).with_name("report.css").read_text() + STYLE
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Benchmarks</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{css}</style></head><body><header><h1>Benchmarks</h1></header><main>"
        f"{''.join(sections)}{_runs(documents)}</main></body></html>\n"
    )


def _section(title: str, note: str, *content: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{escape(note)}</p>{''.join(content)}</section>"


def _panels(figures: Iterable[str]) -> str:
    return f'<div class="even">{"".join(figures)}</div>'


def _table(caption: str, names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    return wide(caption, head, (_row(cells) for cells in rows))


def _row(cells: Sequence[object]) -> str:
    first, *rest = (escape(str(cell)) for cell in cells)
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'


def _runs(documents: Sequence[Document]) -> str:
    rows = []
    for document in documents:
        versions = ", ".join(f"{name} {version}" for name, version in document.versions.items())
        rows.append((document.command, document.date, document.cores, versions))
    return _section(
        "Runs", "Commands, and what they ran on.", _table("", ("command", "ended", "cores", "versions"), rows)
    )


def streams_part(documents: Sequence[Document]) -> str:
    """Latency, processor time and memory over streams, per door."""
    doors = dict.fromkeys(row["door"] for document in documents for row in document.rows)
    parts = []
    for door in doors:
        figures = []
        for q in ("p50", "p95"):
            if found := series_of(documents, door, partial(_wait, q)):
                title = f"{door}: wait for scores, {q}"
                note = f"{_INTERVALS} The line is at {_LIMIT_MS:.0f} ms; above {_EDGE_MS:.0f} ms is drawn at the edge."
                figures.append(figure(title, note, over(found, "streams", "ms", _LIMIT_MS, _EDGE_MS)))
        cpu = series_of(documents, door, lambda row: _exactly(row["cpu_percent_per_stream"]))
        memory = series_of(documents, door, lambda row: _exactly(row["mb_per_stream"]))
        share = "All processes of the server, without Redis."
        figures.append(figure(f"{door}: processor per stream", share, over(cpu, "streams", "% of a core per stream")))
        note = "Highest resident memory above the idle server's, divided by the streams. " + growing(documents, door)
        figures.append(figure(f"{door}: memory per stream", note, over(memory, "streams", "MiB per stream")))
        parts.append(_panels(figures))
    names = ("server, door", "streams", "utterances", "wait p50", "p95", "p99", "lost", "repeated", "failed", "slowest")
    more = ("cores", "peak MiB", "held")
    rows = [_cells(row) for document in documents for row in document.rows]
    note = "Every stream is one caller at the pace of speech who speaks 40 % of the time; senders share the machine."
    return _section("Streams", note, *parts, _table("Runs of streams, waits in ms", (*names, *more), rows))


def _cells(row: Row) -> list[object]:
    waits = [told(row["wait_ms"][q]) if q in row["wait_ms"] else "-" for q in ("p50", "p95", "p99")]
    slowest = "-" if row["slowest_stream"] is None else f"{row['slowest_stream']:.1f}"
    counts = [row["lost"], row["repeated"], len(row["failed"]), slowest]
    used = [f"{row['cores']:.2f}", f"{row['peak_mb']:.0f}", "yes" if row["held"] else "no"]
    return [f"{server_of(row)}, {row['door']}", row["streams"], row["utterances"], *waits, *counts, *used]


def series_of(documents: Sequence[Document], door: str, value: Callable[[Row], Span | None]) -> list[Series]:
    """A series per server, and per run where there are several."""
    found = []
    for document in documents:
        for server in dict.fromkeys(server_of(row) for row in document.rows if row["door"] == door):
            rows = [row for row in document.rows if _is(row, server, door)]
            points = {float(row["streams"]): span for row in rows if (span := value(row)) is not None}
            among = [one for one in documents if any(_is(row, server, door) for row in one.rows)]
            name = f"{server}, {document.date[:16].replace('T', ' ')}" if len(among) > 1 else server
            if points:
                found.append(Series(name, points))
    return found


def _is(row: Row, server: str, door: str) -> bool:
    return (server_of(row), row["door"]) == (server, door)


def server_of(row: Row) -> str:
    """The server of a run of streams, and what its processes were limited to."""
    server = str(row["server"])
    return server if row.get("cores_each") is None else f"{server}, {row['cores_each']:g} cores each"


def growing(documents: Sequence[Document], door: str) -> str:
    """What a stream more adds to the peak of memory, in words: what all share does not count here."""
    words = []
    for one in series_of(documents, door, lambda row: _exactly(row["peak_mb"])):
        counts, peaks = list(one.points), [span["value"] for span in one.points.values()]
        if len(counts) > 1:
            words.append(f"{one.name}: {np.polyfit(counts, peaks, 1)[0]:.1f} MiB for each stream more.")
    return " ".join(words)


def _wait(q: str, row: Row) -> Span | None:
    found: Span | None = row["wait_ms"].get(q)
    return found


def _exactly(value: float) -> Span:
    return {"value": value, "low": value, "high": value}


def impairment_part(documents: Sequence[Document]) -> str:
    """What became of calls over bad networks, and of their neighbours."""
    parts = []
    for document in documents:
        waits = {row["impairment"]: row["neighbours"]["wait_ms"].get("p95") for row in document.rows}
        shown = {name: span for name, span in waits.items() if span is not None}
        if shown:
            note = f"By what the calls beside them suffer from. {_INTERVALS}"
            parts.append(_panels([figure("Well-behaved streams: wait p95", note, side_by_side(shown, "ms"))]))
        names = ("network", "calls", "audio s", "found", "wrong", "gaps", "ended", "neighbours' results")
        parts.append(_table("Calls", names, (_impaired(row) for row in document.rows)))
    note = "Calls over bad networks beside streams over good ones, whose results must be those of an offline score."
    return _section("Impairment", note, *parts)


def _impaired(row: Row) -> list[object]:
    beside = row["neighbours"]
    ends = ", ".join(f"{count} {reason}" for reason, count in sorted(row["ends"].items())) or "-"
    right = f"{beside['utterances']}, all right" if beside["right"] else "NOT right"
    audio, found = f"{row['received_s']:.0f} of {row['sent_s']:.0f}", f"{row['found']} of {row['utterances']}"
    return [row["impairment"], row["calls"], audio, found, row["wrong"], row["gaps"], ends, right]


def soak_part(documents: Sequence[Document]) -> str:
    """Memory over time."""
    figures, rows = [], []
    for document in documents:
        idle = document.facts["idle"]
        hours, memory = settled(idle, "memory")
        per_hour, low, high = growth(hours, memory)
        begin, last = float(hours[0]), document.rows[-1]["at_s"] / 3600
        at_begin = float(np.median(memory - per_hour * (hours - begin)))
        note = f"Between waves, behind the warm-up, it grows by {per_hour:+.1f} [{low:+.1f}, {high:+.1f}] MiB an hour."
        samples = sorted((*document.rows, *idle), key=lambda row: float(row["at_s"]))
        taken = [row["at_s"] / 3600 for row in samples], [row["memory"] for row in samples]
        plot = trend(*taken, (at_begin, per_hour), begin, "resident memory, MiB")
        calls = sum(document.facts["ended"].values())
        figures.append(figure(f"{calls} calls in {60 * last:.0f} minutes", note, plot))
        for name in ("memory", "allocated", "blocks", "descriptors", "threads", "tasks"):
            slope, least, most = growth(*settled(idle, name))
            loaded = np.median([row[name] for row in document.rows])
            cells = [f"{value:.1f}" for value in (document.facts["before"][name], loaded, idle[-1][name])]
            rows.append([name, *cells, f"{slope:+.2f} [{least:+.2f}, {most:+.2f}]"])
    names = ("", "idle before", "median under load", "idle after", "growth of idle per hour")
    note = "Calls that come and go in waves, are hung up and cut off: what the idle daemon holds between two must not grow."
    caption = "Memory in MiB, blocks in thousands, the others counted"
    return _section("Soak", note, _panels(figures), _table(caption, names, rows))


def chaos_part(documents: Sequence[Document]) -> str:
    """Kills and cuts, and what they cost."""
    rows = []
    for document in documents:
        facts = document.facts
        troubles = ", ".join(f"{row['count']} {row['trouble']}" for row in document.rows)
        counts = [facts[name] for name in ("calls", "utterances", "results", "lost", "repeated", "wrong", "again")]
        rows.append([troubles, *counts])
    names = ("troubles", "calls", "utterances", "results", "lost", "repeated", "wrong", "scored again")
    return _section(
        "Chaos", "Everything is killed, cut and stalled at random moments, under load.", _table("", names, rows)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path, nargs="+", metavar="FILE", help="of a benchmark's --json")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page")
    options = parser.parse_args(arguments)
    try:
        found = page([read(path) for path in options.documents])
    except DocumentError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    options.out.write_text(found)
    sys.stdout.write(f"{options.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
