"""What `medusa-train fewshot` leaves for people: the curve as JSON, as one page, and as Markdown."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from train import plots
from train.html_parts import figure, span, wide
from train.phrases import estimate
from train.transfer.source import UNTOUCHED

FINETUNED: Final = "fine-tuned from the source"
SCRATCH: Final = "from scratch"
BEGUN: Final = "begun with"
"""The members that every budget begins with, before any label: normalised where the target file asks for it."""
RESULTS_FILE: Final = "fewshot.json"
PAGE_FILE: Final = "fewshot.html"
MARKDOWN_FILE: Final = "FEWSHOT.md"
_HOW: Final = (
    "UAR, mean over the draws of each budget. Brackets are 95 % intervals by bootstrap over the test speakers; a gain is one "
    "of the same clips under the same draws. The gap is that from what every budget begins with, at 0 labels, to the whole "
    "budget; there is none where full training is not better by an interval above 0, or was not asked for. More than 100 % is "
    "beyond it; resamples of speakers in which full training is no better (at most 2.5 %) do not count."
)


def write_fewshot(folder: Path, results: Mapping[str, Any]) -> Path:
    """Writes the results and their two readable forms; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS_FILE).write_text(json.dumps(results, indent=1, allow_nan=False), encoding="utf-8")
    (folder / MARKDOWN_FILE).write_text(markdown(results), encoding="utf-8")
    path = folder / PAGE_FILE
    path.write_text(page(results), encoding="utf-8")
    return path


def markdown(results: Mapping[str, Any]) -> str:
    """The curve as a table in Markdown."""
    head = ["budget", "clips + validating", *_columns()]
    lines = [f"# Few labels: {results['name']}", "", _summary(results), "", _HOW, ""]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    none = " - |" * (len(head) - 4)
    lines.append(f"| 0 % | 0 | {UNTOUCHED} {estimate(results[UNTOUCHED]['uar'])} | - |{none}")
    first = f"{estimate(results[BEGUN]['uar'])} | {_signed(results[BEGUN]['gain_over_untouched'])} over the {UNTOUCHED}"
    lines.append(f"| 0 % | 0 | {BEGUN} {first} |{none}")
    for row in results["budgets"]:
        tuned, fresh = row["systems"][FINETUNED], row["systems"][SCRATCH]
        cells = [
            estimate(tuned["uar"]),
            _signed(tuned["gain_over_begun"]),
            estimate(fresh["uar"]),
            _signed(row["finetuned_over_scratch"]),
            *(_percent(row["gap_closed"][system]) for system in (FINETUNED, SCRATCH)),
        ]
        lines.append(f"| {row['share']:.0%} | {_size(row)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {note}" for note in _notes(results))]) + "\n"


def page(results: Mapping[str, Any]) -> str:
    """One HTML page that needs nothing else."""
    style = files("train").joinpath("report.css").read_text(encoding="utf-8")
    name, untouched, begun = escape(results["name"]), results[UNTOUCHED]["uar"], results[BEGUN]
    curves = {
        system: {row["share"]: row["systems"][system]["uar"] for row in results["budgets"]}
        for system in (FINETUNED, SCRATCH)
    }
    rows = []
    for row in results["budgets"]:
        tuned, fresh = row["systems"][FINETUNED], row["systems"][SCRATCH]
        cells = [
            _size(row),
            span(tuned["uar"]),
            span(tuned["gain_over_begun"], signed=True),
            span(fresh["uar"]),
            span(row["finetuned_over_scratch"], signed=True),
            *(_percent(row["gap_closed"][system]) for system in (FINETUNED, SCRATCH)),
        ]
        rows.append(f'<tr><th scope="row">{row["share"]:.0%}</th>' + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    names = ("budget", "clips + validating", *_columns())
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in names)
    notes = "".join(f"<li>{escape(note)}</li>" for note in _notes(results))
    curve = figure(
        "UAR over the budget",
        "on speakers that no budget holds",
        plots.budgets(curves, begun["uar"], f"{BEGUN}, 0 labels"),
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}: few labels</title><style>{style}</style></head><body>"
        f"<header><h1>{name}: few labels</h1><p>{escape(_summary(results))}</p></header><main>"
        f'<section aria-labelledby="curve"><h2 id="curve">What a budget buys</h2>'
        f"<p>{UNTOUCHED}: {span(untouched)}; {BEGUN}, 0 labels: {span(begun['uar'])}, "
        f"{span(begun['gain_over_untouched'], signed=True)} over the {UNTOUCHED}</p>{curve}"
        f"{wide('Budgets', head, rows)}</section>"
        f'<section aria-labelledby="notes"><h2 id="notes">Notes</h2><ul class="findings">{notes}</ul></section></main>'
        f"<footer>{escape(_HOW)} Everything here is in {RESULTS_FILE}.</footer></body></html>\n"
    )


def _columns() -> tuple[str, ...]:
    gaps = (f"gap to full training closed, {FINETUNED}", f"gap closed, {SCRATCH}")
    return (FINETUNED, "gain over what it begins with", SCRATCH, "gain over scratch", *gaps)


def _summary(results: Mapping[str, Any]) -> str:
    return (
        f"From {results['source']} ({results['source_corpus']}; members {', '.join(results['members'])}) to "
        f"{results['corpus']}, classes {', '.join(results['classes'])}: {results['draws']} draws of each budget of "
        f"{results['unit']}, tested on "
        f"{results['clips']} clips of {results['speakers']} other speakers, held against the {results['reference']}."
    )


def _notes(results: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "A budget pays for labels, those of the speakers that choose the epoch included: nothing else has one. Of fewer than "
        "five speakers none is held out, and the last epoch is kept. Audio without labels is there for every budget."
    )
    yield (
        "Members are joined by a soft vote. The untouched source is the whole ensemble as it is served; what budgets begin "
        "with is its chosen members, normalised on audio without labels unless the target file forbids it, before any epoch."
    )
    for row in results["budgets"]:
        for system in (FINETUNED, SCRATCH):
            draws = ", ".join(f"{value:.3f}" for value in row["systems"][system]["by_draw"])
            yield f"{row['share']:.0%}, {system}, draw by draw: {draws}."


def _size(row: Mapping[str, Any]) -> str:
    """Clips of the draws, which may differ."""
    clips, held = (sorted(set(row[name])) for name in ("clips", "validating"))
    speakers = sorted(set(row["speakers"]))
    return f"{_span(clips)} + {_span(held)} of {_span(speakers)} speakers"


def _span(counts: list[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _signed(value: Mapping[str, float] | None) -> str:
    return "-" if value is None else f"{value['value']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def _percent(value: Mapping[str, float] | None) -> str:
    return "no gap" if value is None else f"{value['value']:.0%} [{value['low']:.0%}, {value['high']:.0%}]"
