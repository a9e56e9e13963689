"""What `medusa-train crossvalidate` leaves for people: all turns as one test set, and turn by turn."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from model.labels import CLASSES
from train import plots
from train.comparison_files import results_file, write_comparison
from train.contamination import marked, note
from train.html_parts import edges, figure, sectioned, span, wide
from train.phrases import by_speaker, estimate, signed, verdict, weakest

STEM: Final = "crossvalidation"
FIGURES: Final = {"uar": "UAR", "macro_f1": "macro-F1", "accuracy": "accuracy (WA)"}
"""Keys of the figures that each turn has, and their names for people."""
_PARTS: Final = {"session": "session", "folds": "fold of speakers"}
_POOLED: Final = "All clips together"
_TURNS: Final = "Turn by turn"
_MEAN: Final = "mean over the turns"
_DEVIATION: Final = "standard deviation over the turns"
_TURN_COLUMNS: Final = ("tested on", "clips", "speakers", *FIGURES.values())
_HOW: Final = (
    "All clips together are one test set, in which every clip stands once, judged by the run that was tested on it. Brackets "
    "are 95 % intervals by bootstrap over all speakers; a gain is one of the same clips under the same draws, and real where "
    "its interval leaves out 0; the verdict goes by UAR. Accuracy is what papers call WA (weighted accuracy), UAR what they "
    "call UA."
)


def write_crossvalidation(folder: Path, results: Mapping[str, Any]) -> Path:
    """Writes the results and their two readable forms; returns the page's path."""
    return write_comparison(folder, STEM, results, page, markdown)


def markdown(results: Mapping[str, Any]) -> str:
    """The same tables in Markdown."""
    lines = [f"# {_title(results)}", "", _summary(results), "", _HOW, "", f"## {_POOLED}", "", verdict(results)]
    lines += _table(
        _system_columns(results),
        (
            [marked(system, scored), *(signed(f) if is_gain else estimate(f) for f, is_gain in _cells(results, system))]
            for system, scored in results["systems"].items()
        ),
    )
    lines += _table(
        ("class", "F1 of the soup"), ([name, estimate(found)] for name, found in results["class_f1"].items())
    )
    shown = [index for index, name in enumerate(CLASSES) if _occurs(results["confusion"], index)]
    lines += _table(
        ("it was / the soup said", *(CLASSES[index] for index in shown)),
        ([CLASSES[row], *(str(results["confusion"][row][column]) for column in shown)] for row in shown),
    )
    lines += ["", f"## {_TURNS}", *_table(_TURN_COLUMNS, _turn_rows(results))]
    return "\n".join([*lines, "", "## Notes", "", *(f"- {line}" for line in _notes(results))]) + "\n"


def page(results: Mapping[str, Any]) -> str:
    """One HTML page that needs nothing else."""
    turns = [
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in _turn_rows(results)
    ]
    return sectioned(
        _title(results),
        _summary(results),
        {_POOLED: _pooled(results), _TURNS: wide("The soup, turn by turn", _head(_TURN_COLUMNS), turns)},
        _notes(results),
        f"{_HOW} Everything here is in {results_file(STEM)}.",
    )


def _pooled(results: Mapping[str, Any]) -> str:
    low, high = edges(scored["uar"] for scored in results["systems"].values())
    rows = []
    for system, scored in results["systems"].items():
        cells = [span(found, signed=is_gain) for found, is_gain in _cells(results, system)]
        cells[0] += plots.interval(scored["uar"], low, high)
        chosen = "" if system in results["uar_gain_of_soup"] else ' class="chosen"'
        name = f'<th scope="row">{escape(marked(system, scored))}</th>'
        rows.append(f"<tr{chosen}>{name}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    labels = {name: dict(found) for name, found in results["class_f1"].items()}
    figures = [
        figure(
            "Confusion of the soup",
            "Rows: what it was. Columns: what the soup said. Share of the row, and clips.",
            plots.confusion(results["confusion"]),
        ),
        figure("F1 of each class, soup", weakest(results), plots.bars(labels, "F1 of each class", 1.0)),
        figure("Speakers", by_speaker(results), plots.speakers(results["by_speaker"])),
    ]
    return (
        f'<p class="verdict">{escape(verdict(results))}</p>'
        f"{wide('Systems', _head(_system_columns(results)), rows)}"
        f'<div class="panels">{"".join(figures)}</div>'
    )


def _system_columns(results: Mapping[str, Any]) -> list[str]:
    gains = "gain of the soup over it, paired"
    votes = ["UAR against votes"] if _rated(results) else []
    return ["system", "UAR", f"UAR: {gains}", "macro-F1", f"macro-F1: {gains}", FIGURES["accuracy"], *votes]


def _cells(results: Mapping[str, Any], system: str) -> list[tuple[Mapping[str, float] | None, bool]]:
    """The figures of a system's row, and which of them are gains; None where there is none."""
    scored = results["systems"][system]
    cells = [
        (scored["uar"], False),
        (results["uar_gain_of_soup"].get(system), True),
        (scored["macro_f1"], False),
        (results["macro_f1_gain_of_soup"].get(system), True),
        (scored["accuracy"], False),
    ]
    return [*cells, (scored["voted_uar"], False)] if _rated(results) else cells


def _rated(results: Mapping[str, Any]) -> bool:
    return any(scored["voted_uar"] for scored in results["systems"].values())


def _turn_rows(results: Mapping[str, Any]) -> Iterator[list[str]]:
    for turn in results["turns"]:
        yield [turn["name"], str(turn["clips"]), str(turn["speakers"]), *(f"{turn[name]:.3f}" for name in FIGURES)]
    for words, kind in ((_MEAN, "mean"), (_DEVIATION, "deviation")):
        yield [words, "", "", *(f"{results['over_turns'][name][kind]:.3f}" for name in FIGURES)]


def _head(columns: Sequence[str]) -> str:
    return "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown, and the empty line before it."""
    return [
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        *(f"| {' | '.join(cells)} |" for cells in rows),
    ]


def _occurs(matrix: Sequence[Sequence[int]], index: int) -> bool:
    """Whether a class is the truth or the guess of some clip."""
    return bool(sum(matrix[index]) or sum(row[index] for row in matrix))


def _title(results: Mapping[str, Any]) -> str:
    return f"{results['name']}: a run for each {_PARTS[results['split']]}"


def _summary(results: Mapping[str, Any]) -> str:
    return (
        f"{results['clips']} clips of {results['speakers']} speakers of {results['corpus']}, held against the "
        f"{results['reference']}: {len(results['turns'])} runs of one recipe (members {', '.join(results['members'])}), each "
        f"tested on one {_PARTS[results['split']]} that no stage of it has heard."
    )


def _notes(results: Mapping[str, Any]) -> Iterator[str]:
    if flatters := note(results["systems"].values()):
        yield flatters
    if left_out := results["without_reference"]:
        yield f"{left_out} clips without consensus count in no score."
    yield weakest(results)
    yield (
        f"ECE of the soup's posteriors over all clips, each with the temperature of its own run: {results['ece']:.3f} "
        "(15 bins)."
    )
    yield (
        "The mean over the turns is what many papers report: each turn counts alike, however many clips it has, and a class "
        "counts in the UAR and macro-F1 of a turn only if it occurs in it. The standard deviation is that of the turns "
        "(divided by their number less one). It is no interval: it says how far parts of the corpus differ, not how sure "
        "the mean is."
    )
    yield "Each turn's own report, its development speakers and its temperature are in the folder of its run: " + (
        ", ".join(turn["folder"] for turn in results["turns"]) + "."
    )
