"""What `medusa-train ablate --table parts` leaves for people: the table of the second family's parts."""

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any, Final

from train import plots
from train.comparison_files import results_file, write_comparison
from train.contamination import marked, note
from train.family_parts import BASELINE, PARTS
from train.html_parts import edges, sectioned, span, wide
from train.phrases import estimate, signed, tested_on

STEM: Final = "parts"
_HOW: Final = (
    "Brackets are 95 % intervals by bootstrap over speakers, of means over all seeds. A change is one of the same clips, the "
    "same draws and the same seeds, and a part helps or costs where its interval leaves out 0. The intervals hold what other "
    "speakers would change; what other seeds would is told beside, by the spread (standard deviation over "
    "the seeds of a member) and by how many of them are ahead of the baseline of their seed."
)
_COLUMNS: Final = (
    "row",
    "macro-F1",
    f"change from {BASELINE}, paired",
    "members ahead",
    "UAR",
    "change of UAR, paired",
    "spread of macro-F1",
)


def write_parts(folder: Path, results: Mapping[str, Any]) -> Path:
    """Writes the results and their two readable forms; returns the page's path."""
    return write_comparison(folder, STEM, results, page, markdown)


def page(results: Mapping[str, Any]) -> str:
    """One HTML page that needs nothing else."""
    return sectioned(
        f"{results['name']}: parts of the second family",
        _summary(results),
        {name: _section(name, found) for name, found in results["sets"].items()},
        _notes(results),
        f"{_HOW} Everything here is in {results_file(STEM)}.",
    )


def markdown(results: Mapping[str, Any]) -> str:
    """The same tables in Markdown."""
    lines = [f"# Parts of the second family: {results['name']}", "", _summary(results), "", _HOW]
    for name, found in results["sets"].items():
        lines += [
            "",
            f"## {name}",
            "",
            tested_on(found),
            "",
            f"| {' | '.join(_COLUMNS)} |",
            "|---" * len(_COLUMNS) + "|",
        ]
        for part, row in found["rows"].items():
            cells = [
                estimate(row["macro_f1"]),
                signed(row.get("change")),
                _ahead(row),
                estimate(row["uar"]),
                signed(row.get("uar_change")),
                _spread(row),
            ]
            lines.append(f"| {marked(part, found)} | {' | '.join(cells)} |")
        lines += ["", *(f"- {line}" for line in _findings(found))]
    return "\n".join([*lines, "", "## Notes", "", *(f"- {line}" for line in _notes(results))]) + "\n"


def verdict(found: Mapping[str, Any]) -> str:
    """Plainly, which parts help on a set of clips: only an interval that leaves out 0 decides."""
    groups: dict[str, list[str]] = {"better": [], "worse": [], "not distinguishable": []}
    for part, row in found["rows"].items():
        if change := row.get("change"):
            of = "better" if change["low"] > 0 else "worse" if change["high"] < 0 else "not distinguishable"
            groups[of].append(part)
    told = "; ".join(f"{words}: {', '.join(parts)}" for words, parts in groups.items() if parts)
    return f"Against {BASELINE}, by macro-F1: {told}."


def _section(name: str, found: Mapping[str, Any]) -> str:
    rows = found["rows"]
    low, high = edges(row["macro_f1"] for row in rows.values())
    changes = [row["change"] for row in rows.values() if "change" in row]
    reach = max([abs(change[side]) for change in changes for side in ("low", "high")], default=0.0) or 1.0
    shown = []
    for part, row in rows.items():
        change = row.get("change")
        drawn = plots.interval(change, -reach, reach, zero=True) if change else ""
        cells = [
            f"{span(row['macro_f1'])}{plots.interval(row['macro_f1'], low, high)}",
            f"{span(change, signed=True)}{drawn}",
            _ahead(row),
            span(row["uar"]),
            span(row.get("uar_change"), signed=True),
            _spread(row),
        ]
        chosen = "" if change else ' class="chosen"'
        shown.append(
            f'<tr{chosen}><th scope="row">{escape(marked(part, found))}</th><td>{"</td><td>".join(cells)}</td></tr>'
        )
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in _COLUMNS)
    findings = "".join(f"<li>{escape(line)}</li>" for line in _findings(found))
    return (
        f'<p>{escape(tested_on(found))}</p>{wide(f"Parts on {name}", head, shown)}<ul class="findings">{findings}</ul>'
    )


def _findings(found: Mapping[str, Any]) -> Iterator[str]:
    yield verdict(found)
    if flatters := note([found]):
        yield flatters
    columns = list(found["rows"][BASELINE]["by_column"])
    for column in columns:
        each = ", ".join(f"{part} {row['by_column'][column]:.3f}" for part, row in found["rows"].items())
        yield f"{column}: {each}."


def _summary(results: Mapping[str, Any]) -> str:
    told = "; ".join(f"{name} reads {', '.join(read)}" for name, read in results["members"].items())
    return (
        f"What each part of the second family adds to cross-attention, over {results['seeds']} seeds of each row. Modalities "
        f"and sizes are those of the recipe's members: {told}. Members are compared, each trained on all training speakers."
    )


def _notes(results: Mapping[str, Any]) -> Iterator[str]:
    names = ", ".join(part.name for part in PARTS)
    yield f"Rows: {names}. VGA guides every attention; EAAF is the constrained form, whose shares sum to 1."
    yield "MICL compares projections half as wide as the member, with the weight and temperature of the recipe."
    if not results["rated"]:
        yield "No training clip is rated for arousal, valence or dominance, so the loss has no such term in any row."


def _ahead(row: Mapping[str, Any]) -> str:
    return f"{row['better_in']} of {len(row['by_column'])}" if "better_in" in row else "-"


def _spread(row: Mapping[str, Any]) -> str:
    return "-" if row["spread"] is None else f"{row['spread']:.3f}"
