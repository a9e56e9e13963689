"""What `medusa-train ablate --table baselines` leaves for people: a table for each compared member and test set."""

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any, Final

from train import plots
from train.baselines import DEEP, LATE
from train.comparison_files import results_file, write_comparison
from train.contamination import marked, note
from train.html_parts import edges, sectioned, span, wide
from train.phrases import estimate, signed, tested_on

STEM: Final = "baselines"
_HOW: Final = (
    "Brackets are 95 % intervals by bootstrap over speakers, of means over all seeds. A gain is deep fusion less the row, on "
    "the same clips and seeds: deep fusion is better or worse where its interval leaves out 0, else not told apart. "
    "Each interval is of one comparison, none is widened for there being several. They hold what other speakers would change; "
    "what other seeds would is told beside, by the spread (standard deviation of macro-F1 over the seeds) and by how many "
    "seeds have deep fusion ahead by macro-F1."
)
_COLUMNS: Final = (
    "row",
    "UAR",
    "gain of deep fusion, UAR, paired",
    "macro-F1",
    "gain of deep fusion, macro-F1, paired",
    "seeds ahead",
    "spread",
)
_MEASURES: Final = (("UAR", "uar_gain"), ("macro-F1", "gain"))

Rows = Mapping[str, Mapping[str, Any]]
"""Row -> its figures."""


def write_baselines(folder: Path, results: Mapping[str, Any]) -> Path:
    """Writes the results and their two readable forms; returns the page's path."""
    return write_comparison(folder, STEM, results, page, markdown)


def page(results: Mapping[str, Any]) -> str:
    """One HTML page that needs nothing else."""
    return sectioned(
        f"{results['name']}: deep fusion against baselines",
        _summary(results),
        {name: _section(name, found) for name, found in results["sets"].items()},
        _notes(results),
        f"{_HOW} Everything here is in {results_file(STEM)}.",
    )


def markdown(results: Mapping[str, Any]) -> str:
    """The same tables in Markdown."""
    lines = [f"# Deep fusion against baselines: {results['name']}", "", _summary(results), "", _HOW]
    for name, found in results["sets"].items():
        lines += ["", f"## {name}", "", tested_on(found)]
        for member, rows in found["members"].items():
            lines += ["", f"### {member}", "", f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
            for row, figures in rows.items():
                cells = [
                    estimate(figures["uar"]),
                    signed(figures.get("uar_gain")),
                    estimate(figures["macro_f1"]),
                    signed(figures.get("gain")),
                    _ahead(figures),
                    _spread(figures),
                ]
                lines.append(f"| {marked(row, figures)} | {' | '.join(cells)} |")
            lines += ["", *(f"- {line}" for line in _findings(member, rows))]
    return "\n".join([*lines, "", "## Notes", "", *(f"- {line}" for line in _notes(results))]) + "\n"


def verdict(member: str, rows: Rows, measure: str, key: str) -> str:
    """Plainly, which baselines a member beats: only an interval that leaves out 0 decides.

    Args:
        member: name of the compared member.
        rows: its table.
        measure: as it is called.
        key: of the gains in it.
    """
    groups: dict[str, list[str]] = {"better than": [], "worse than": [], "not told apart from": []}
    for row, figures in rows.items():
        if gain := figures.get(key):
            of = "better than" if gain["low"] > 0 else "worse than" if gain["high"] < 0 else "not told apart from"
            groups[of].append(row)
    told = "; ".join(f"{words} {', '.join(names)}" for words, names in groups.items() if names)
    beaten = "beats all of its baselines" if len(groups["better than"]) == len(rows) - 1 else "does not beat them all"
    return f"By {measure}, {DEEP} in {member} {beaten}: {told}."


def _section(name: str, found: Mapping[str, Any]) -> str:
    tables = "".join(_table(name, member, rows) for member, rows in found["members"].items())
    return f"<p>{escape(tested_on(found))}</p>{tables}"


def _table(name: str, member: str, rows: Rows) -> str:
    low, high = edges(figures["uar"] for figures in rows.values())
    gains = [figures["uar_gain"] for figures in rows.values() if "uar_gain" in figures]
    reach = max([abs(gain[side]) for gain in gains for side in ("low", "high")], default=0.0) or 1.0
    shown = []
    for row, figures in rows.items():
        gain = figures.get("uar_gain")
        cells = [
            f"{span(figures['uar'])}{plots.interval(figures['uar'], low, high)}",
            f"{span(gain, signed=True)}{plots.interval(gain, -reach, reach, zero=True) if gain else ''}",
            span(figures["macro_f1"]),
            span(figures.get("gain"), signed=True),
            _ahead(figures),
            _spread(figures),
        ]
        chosen = "" if gain else ' class="chosen"'
        label = escape(marked(row, figures))
        shown.append(f'<tr{chosen}><th scope="row">{label}</th><td>{"</td><td>".join(cells)}</td></tr>')
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in _COLUMNS)
    findings = "".join(f"<li>{escape(line)}</li>" for line in _findings(member, rows))
    return f'{wide(f"{member} on {name}", head, shown)}<ul class="findings">{findings}</ul>'


def _findings(member: str, rows: Rows) -> Iterator[str]:
    for measure, key in _MEASURES:
        yield verdict(member, rows, measure, key)
    if flatters := note(rows.values()):
        yield flatters
    for column in rows[DEEP]["by_column"]:
        each = ", ".join(f"{row} {figures['by_column'][column]:.3f}" for row, figures in rows.items())
        yield f"{column}, macro-F1: {each}."


def _summary(results: Mapping[str, Any]) -> str:
    told = "; ".join(f"{name} reads {', '.join(rows[DEEP])}" for name, rows in results["members"].items())
    return (
        "Members of the recipe against baselines on the same features and speakers, "
        f"over {results['seeds']} seeds of each row: {told}. Members are compared, each trained on all training speakers."
    )


def _notes(results: Mapping[str, Any]) -> Iterator[str]:
    yield "Deep fusion is the member as the recipe has it, with each seed trained anew."
    yield "Late fusion is the mean of the logits of a network per modality, trained together."
    yield (
        "A row of one modality alone is a single-modality transformer: the member with that modality and nothing else changed. "
        "Without the words, no drawn text moves its targets."
    )
    strengths = ", ".join(f"{l2:g}" for l2 in results["l2"])
    yield (
        "The linear probe is fitted on the means over time of the same modalities' frames, of copies and texts drawn alike; "
        f"of the strengths {strengths} of its L2 the development speakers choose."
    )
    for name, rows in results["members"].items():
        if LATE not in rows:
            yield f"{name} has guided attention in its fusion, so it has no late fusion."
    for name, why in results["left_out"].items():
        yield f"Left out: {name} {why}."


def _ahead(figures: Mapping[str, Any]) -> str:
    return f"{figures['ahead']} of {len(figures['by_column'])}" if "ahead" in figures else "-"


def _spread(figures: Mapping[str, Any]) -> str:
    return "-" if figures["spread"] is None else f"{figures['spread']:.3f}"
