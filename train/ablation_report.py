"""What `medusa-train ablate` leaves for people: the tables as JSON, as one page, and as Markdown."""

from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any, Final

from train import plots
from train.ablation_tables import SOUP
from train.comparison_files import results_file, write_comparison
from train.contamination import KEY, MEMBERS_KEY, marked, note
from train.html_parts import edges, sectioned, span, wide
from train.phrases import estimate, signed, tested_on

STEM: Final = "ablation"

_MEMBERS: Final = "Members with one thing taken away"
_ENSEMBLES: Final = "Ways to join the members"
_CHOSEN: Final = ' class="chosen"'
_HOW: Final = (
    "Brackets are 95 % intervals by bootstrap over speakers; a change is one of the same clips under the same draws, and its "
    "interval leaves out 0 where the two differ. The paper's figures are of MSP-Podcast and of its own members: the signs "
    "compare, the sizes need not."
)
_PAPER_ENSEMBLE: Final = (
    "Of its ensemble the paper reports macro-F1 0.472 on its internal balanced test and 0.440 for its best member; its "
    "figures for the single cells of this table are not given here."
)


def write_ablations(folder: Path, results: Mapping[str, Any]) -> Path:
    """Writes the results and their two readable forms; returns the page's path."""
    return write_comparison(folder, STEM, results, page, markdown)


def page(results: Mapping[str, Any]) -> str:
    """One HTML page that needs nothing else."""
    return sectioned(
        f"{results['name']}: ablations",
        _summary(results),
        {name: _set(found, results) for name, found in results["sets"].items()},
        _notes(results),
        f"{_HOW} Everything here is in {results_file(STEM)}.",
    )


def markdown(results: Mapping[str, Any]) -> str:
    """The same tables in Markdown."""
    lines = [f"# Ablations of {results['name']}", "", _summary(results), "", _HOW]
    for name, found in results["sets"].items():
        taught = found.get(MEMBERS_KEY, {})
        lines += ["", f"## {name}", "", tested_on(found), "", f"### {_MEMBERS}", ""]
        lines += ["| recipe | macro-F1 | change | relative change | the paper's |", "|---|---|---|---|---|"]
        for row, score in found["members"].items():
            cells = (estimate(score["macro_f1"]), signed(score.get("change")), _percent(score.get("relative_change")))
            named = _marked(row, score["by_member"], taught)
            lines.append(f"| {named} | {' | '.join(cells)} | {_paper(score)} |")
        lines += ["", f"### {_ENSEMBLES}", ""]
        sizes = found["ensembles"]
        lines += [
            f"| way | {' | '.join(_size(sizes, n, taught) for n in range(len(sizes)))} |",
            "|---" * (len(sizes) + 1) + "|",
        ]
        for system in sizes[0]["systems"]:
            shown = [_joined(size["systems"][system]) for size in sizes]
            lines.append(f"| {system} | {' | '.join(shown)} |")
        lines += ["", f"Behind each macro-F1, its difference from the soup of all. {_PAPER_ENSEMBLE}"]
        lines += ["", flatters] if (flatters := _flatters(found)) else []
    return "\n".join([*lines, "", "## Notes", "", *(f"- {line}" for line in _notes(results))]) + "\n"


def _set(found: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    taught = found.get(MEMBERS_KEY, {})
    flatters = _flatters(found)
    return (
        f"<p>{escape(tested_on(found))}</p>"
        f"{_members(found['members'], results['members'], taught)}{_ensembles(found['ensembles'], taught)}"
        + (f'<p class="note">{escape(flatters)}</p>' if flatters else "")
        + f'<p class="note">{escape(_PAPER_ENSEMBLE)}</p>'
    )


def _flatters(found: Mapping[str, Any]) -> str:
    """What the sign means, where some member of a table has it."""
    return note({KEY: encoders} for encoders in found.get(MEMBERS_KEY, {}).values())


def _marked(name: str, members: Iterable[str], taught: Mapping[str, list[str]]) -> str:
    """A name with a sign, where one of its members reads what was taught the corpus."""
    return marked(name, {KEY: [encoder for member in members for encoder in taught.get(member, ())]})


def _members(rows: Mapping[str, Any], members: list[str], taught: Mapping[str, list[str]]) -> str:
    low, high = edges(row["macro_f1"] for row in rows.values() if row["macro_f1"])
    changes = [row["relative_change"] for row in rows.values() if row.get("relative_change")]
    reach = max([abs(change[side]) for change in changes for side in ("low", "high")], default=0.0) or 1.0
    shown, by_member = [], []
    for name, row in rows.items():
        relative, paper = row.get("relative_change"), "paper" in row
        drawn = plots.interval(relative, -reach, reach, zero=True) if relative else ""
        score = f"{span(row['macro_f1'])}{plots.interval(row['macro_f1'], low, high)}" if row["macro_f1"] else "-"
        change = f"{_percent_span(relative)}{drawn}" if relative else "-" if row["macro_f1"] else "not compared"
        shown_name = escape(_marked(name, row["by_member"], taught))
        head = f'<tr{"" if paper else _CHOSEN}><th scope="row">{shown_name}</th>'
        shown.append(
            f"{head}<td>{change}</td><td>{_paper(row)}</td><td>{score}</td><td>{span(row.get('change'), signed=True)}</td></tr>"
        )
        own = [f"{row['by_member'][member]:.3f}" if member in row["by_member"] else "-" for member in members]
        by_member.append(f"{head}<td>{'</td><td>'.join(own)}</td></tr>")
    columns = (
        '<th scope="col">recipe</th><th scope="col">relative change of macro-F1</th><th scope="col">the paper\'s</th>'
        '<th scope="col">macro-F1, mean of the members</th><th scope="col">change, paired</th>'
    )
    names = "".join(f'<th scope="col">{escape(_marked(name, [name], taught))}</th>' for name in members)
    return wide(_MEMBERS, columns, shown) + wide(
        "Macro-F1 of each member", f'<th scope="col">recipe</th>{names}', by_member
    )


def _ensembles(sizes: list[Mapping[str, Any]], taught: Mapping[str, list[str]]) -> str:
    rows = []
    for system in sizes[0]["systems"]:
        cells = []
        for number, size in enumerate(sizes):
            row, is_soup_of_all = size["systems"][system], number == 0 and system == SOUP
            change = "-" if is_soup_of_all else span(row["change"], signed=True)
            cells.append(f"<td>{span(row['macro_f1'])}</td><td>{change}</td>")
        rows.append(f'<tr><th scope="row">{escape(system)}</th>{"".join(cells)}</tr>')
    head = '<th scope="col">way</th>' + "".join(
        f'<th scope="col">{_size(sizes, number, taught)}: macro-F1</th><th scope="col">from the soup of all, paired</th>'
        for number in range(len(sizes))
    )
    return wide(_ENSEMBLES, head, rows)


def _summary(results: Mapping[str, Any]) -> str:
    return (
        f"What each part of the recipe is worth here. Members compared: {', '.join(results['members'])}; the paper compares "
        "four of its own (table 2). The best members of a smaller ensemble are the best on the development speakers (table 3)."
    )


def _notes(results: Mapping[str, Any]) -> Iterator[str]:
    ties, clips = results["without_dominant_class"], results["training_clips"]
    yield (
        f"One-hot targets are the class with most votes. {ties} of {clips} training clips have no such class: they keep their "
        "votes, and stay in the group without consensus."
    )
    yield "Late fusion is the mean of the logits of one network per modality, trained together, without any fusion encoder."
    yield "Without stage 2, a member is what its stage 1 left; nothing is trained for that row."
    yield "A row that leaves members out is held against the full recipe of the members that it has."
    for ablation, reasons in results["left_out"].items():
        for why in dict.fromkeys(reasons.values()):
            names = ", ".join(member for member, reason in reasons.items() if reason == why)
            yield f"{ablation}: not compared for {names}, because {why}."
    for size in next(iter(results["sets"].values()))["ensembles"][1:]:
        yield f"The best {len(size['members'])} members: {', '.join(size['members'])}."


def _size(sizes: list[Mapping[str, Any]], number: int, taught: Mapping[str, list[str]]) -> str:
    names = sizes[number]["members"]
    return _marked(f"best {len(names)}" if number else f"all {len(names)}", names, taught)


def _joined(row: Mapping[str, Any]) -> str:
    change = row["change"]
    return (
        f"{estimate(row['macro_f1'])}; {signed(change)}"
        if change["low"] or change["high"]
        else estimate(row["macro_f1"])
    )


def _percent(value: Mapping[str, float] | None) -> str:
    return "-" if value is None else f"{value['value']:+.1%} [{value['low']:+.1%}, {value['high']:+.1%}]"


def _percent_span(value: Mapping[str, float]) -> str:
    limits = f"[{value['low']:+.1%}, {value['high']:+.1%}]"
    return f'<span class="estimate">{value["value"]:+.1%} <span class="range">{limits}</span></span>'


def _paper(row: Mapping[str, Any]) -> str:
    return f"{row['paper']:+.1%}" if "paper" in row else ""
