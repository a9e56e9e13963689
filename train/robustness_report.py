"""What `medusa-train robustness` leaves for people: UAR under every condition, as JSON, as one page, and as Markdown."""

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any, Final

from train import plots
from train.comparison_files import results_file, write_comparison
from train.contamination import marked, note
from train.html_parts import edges, sectioned, span, wide
from train.phrases import estimate, signed

STEM: Final = "robustness"
CLEAN: Final = "as recorded"
_HOW: Final = (
    "UAR of the whole ensemble, each speaker's clips one call. Every condition is applied to every clip, alone, and its words "
    "are transcribed from what is left. A clip in which no speech is found is kept whole here, which a daemon would leave "
    "out. Brackets are 95 % intervals by bootstrap over speakers; changes are of the same clips, and real where their "
    "interval leaves out 0."
)


def write_robustness(folder: Path, results: Mapping[str, Any]) -> Path:
    """Writes the results and their two readable forms; returns the page's path."""
    return write_comparison(folder, STEM, results, page, markdown)


def markdown(results: Mapping[str, Any]) -> str:
    """The table in Markdown."""
    columns = _columns(results)
    lines = [
        "# Robustness",
        "",
        _summary(results),
        "",
        _HOW,
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    for condition, row in results["rows"].items():
        cells = [condition, _told(results, condition)]
        for run, found in row.items():
            cells += [estimate(found["uar"]), signed(found["change"])]
            cells += [signed(found["over_first"])] if run != _first(results) else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {line}" for line in _findings(results))]) + "\n"


def page(results: Mapping[str, Any]) -> str:
    """One HTML page that needs nothing else."""
    spans = [found["uar"] for row in results["rows"].values() for found in row.values()]
    low, high = edges(spans)
    rows = []
    for condition, row in results["rows"].items():
        cells = [escape(_told(results, condition))]
        for run, found in row.items():
            cells += [
                f"{span(found['uar'])}{plots.interval(found['uar'], low, high)}",
                span(found["change"], signed=True),
            ]
            cells += [span(found["over_first"], signed=True)] if run != _first(results) else []
        name = f'<th scope="row">{escape(condition)}</th><td class="words">{escape(_told(results, condition))}</td>'
        rows.append(f"<tr>{name}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    left = ' class="words"'
    head = "".join(
        f'<th scope="col"{left * (number == 1)}>{escape(column)}</th>'
        for number, column in enumerate(_columns(results))
    )
    return sectioned(
        "Robustness",
        _summary(results),
        {results["corpus"]: wide("Conditions", head, rows)},
        _findings(results),
        f"{_HOW} Everything here is in {results_file(STEM)}.",
    )


def _first(results: Mapping[str, Any]) -> str:
    return str(next(iter(results["runs"])))


def _columns(results: Mapping[str, Any]) -> list[str]:
    columns = ["condition", "what happens"]
    for run in results["runs"]:
        columns += [marked(run, results["taught"][run]), "change from the recordings"]
        columns += [] if run == _first(results) else [f"over {_first(results)}"]
    return columns


def _told(results: Mapping[str, Any], condition: str) -> str:
    return str(results["conditions"].get(condition, "nothing"))


def _summary(results: Mapping[str, Any]) -> str:
    copies = "; ".join(f"{run} was trained with {told}" for run, told in results["runs"].items())
    return (
        f"{results['clips']} clips of {results['speakers']} speakers of {results['corpus']} that no stage saw, held against "
        f"the {results['reference']}. {copies}."
    )


def _findings(results: Mapping[str, Any]) -> Iterator[str]:
    """Plainly, what costs and what does not: only an interval that leaves out 0 decides."""
    if flatters := note(list(results["taught"].values())):
        yield flatters
    for run in results["runs"]:
        rows = {condition: row[run]["change"] for condition, row in results["rows"].items() if condition != CLEAN}
        costs = [condition for condition, change in rows.items() if change["high"] < 0]
        helps = [condition for condition, change in rows.items() if change["low"] > 0]
        none = [condition for condition in rows if condition not in (*costs, *helps)]
        yield (
            f"{run}: worse under {', '.join(costs) or 'no condition'}; better under {', '.join(helps) or 'none'}; not "
            f"distinguishable from the recordings under {', '.join(none) or 'none'}."
        )
        if run != _first(results):
            leads = {condition: row[run]["over_first"] for condition, row in results["rows"].items()}
            better = [condition for condition, lead in leads.items() if lead["low"] > 0]
            worse = [condition for condition, lead in leads.items() if lead["high"] < 0]
            yield (
                f"{run} against {_first(results)}: better in {', '.join(better) or 'nothing'}; worse in "
                f"{', '.join(worse) or 'nothing'}."
            )
