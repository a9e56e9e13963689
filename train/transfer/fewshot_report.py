"""What `medusa-train fewshot` leaves for people: the curve as JSON, as one page, and as Markdown."""

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any, Final

from train import plots
from train.comparison_files import results_file, write_comparison
from train.contamination import KEY, marked, note
from train.html_parts import document, figure, section, span, wide
from train.phrases import estimate, percent, signed
from train.transfer.source import UNTOUCHED

FINETUNED: Final = "fine-tuned from the source"
SCRATCH: Final = "from scratch"
BEGUN: Final = "begun with"
"""The members that every budget begins with, before any label: normalised where the target file asks for it."""
STEM: Final = "fewshot"
_TURNS: Final = "Turn by turn"
_HOW: Final = (
    "UAR, mean over the draws of each budget. Brackets are 95 % intervals by bootstrap over the test speakers; a gain is one "
    "of the same clips under the same draws. The gap is that from what every budget begins with, at 0 labels, to the whole "
    "budget; the one from the untouched source credits labels with what audio without labels gives as well. There is none "
    "where full training is not better by an interval above 0, or was not asked for. More than 100 % is beyond it; resamples "
    "of speakers in which full training is no better (at most 2.5 %) do not count. In the first table each test speaker's "
    "clips are one call in a random order. Where inputs are adapted to their channel, further tables hear them otherwise."
)


def write_fewshot(folder: Path, results: Mapping[str, Any]) -> Path:
    """Writes the results and their two readable forms; returns the page's path."""
    return write_comparison(folder, STEM, results, page, markdown)


def markdown(results: Mapping[str, Any]) -> str:
    """The curve as a table in Markdown."""
    lines = [f"# Few labels: {results['name']}", "", _summary(results), "", _HOW, "", *_table(results)]
    for way, heard in _ways(results):
        lines += ["", f"## {_heading(way)}", "", *_table(heard)]
    if turns := results["turns"]:
        heads = _turn_columns(results)
        lines += ["", f"## {_TURNS}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        lines += [f"| {' | '.join(_turn_cells(turn))} |" for turn in turns]
    return "\n".join([*lines, "", *(f"- {line}" for line in _notes(results))]) + "\n"


def _turn_columns(results: Mapping[str, Any]) -> list[str]:
    budgets = [percent(row["share"]) for row in results["budgets"]]
    return ["tested on", "clips", "speakers", UNTOUCHED, BEGUN, *budgets]


def _turn_cells(turn: Mapping[str, Any]) -> list[str]:
    figures = [turn[UNTOUCHED], turn[BEGUN], *turn[FINETUNED]]
    return [turn["name"], str(turn["clips"]), str(turn["speakers"]), *(f"{value:.3f}" for value in figures)]


def _ways(results: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every other way of hearing the same clips, and what `_table` reads of it."""
    for way, heard in results["otherwise"].items():
        levels = {UNTOUCHED: results[UNTOUCHED] | heard[UNTOUCHED]}
        yield way, {KEY: results.get(KEY, [])} | heard | levels


def _heading(way: str) -> str:
    return f"The same, {way}"


def _table(results: Mapping[str, Any]) -> list[str]:
    head = ["budget", "clips + validating", *_columns()]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    none = " - |" * (len(head) - 4)
    lines.append(
        f"| {marked('0 %', results[UNTOUCHED])} | 0 | {UNTOUCHED} {estimate(results[UNTOUCHED]['uar'])} | - |{none}"
    )
    first = f"{estimate(results[BEGUN]['uar'])} | {signed(results[BEGUN]['gain_over_untouched'])} over the {UNTOUCHED}"
    lines.append(f"| {marked('0 %', results)} | 0 | {BEGUN} {first} |{none}")
    for row in results["budgets"]:
        tuned, fresh = row["systems"][FINETUNED], row["systems"][SCRATCH]
        cells = [
            estimate(tuned["uar"]),
            signed(tuned["gain_over_begun"]),
            estimate(fresh["uar"]),
            signed(row["finetuned_over_scratch"]),
            *_gaps(row),
        ]
        lines.append(f"| {marked(percent(row['share']), results)} | {_size(row)} | {' | '.join(cells)} |")
    return lines


def page(results: Mapping[str, Any]) -> str:
    """One HTML page that needs nothing else."""
    sections = [section("curve", "What a budget buys", _curve(results))]
    for number, (way, heard) in enumerate(_ways(results), 1):
        sections.append(section(f"otherwise-{number}", _heading(way), _curve(heard)))
    if results["turns"]:
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in _turn_columns(results))
        rows = [
            f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
            for name, *cells in map(_turn_cells, results["turns"])
        ]
        sections.append(section("turns", _TURNS, wide("UAR, fine-tuned, mean over the draws", head, rows)))
    notes = "".join(f"<li>{escape(line)}</li>" for line in _notes(results))
    sections.append(section("notes", "Notes", f'<ul class="findings">{notes}</ul>'))
    return document(
        f"{results['name']}: few labels",
        _summary(results),
        {},
        "".join(sections),
        f"{_HOW} Everything here is in {results_file(STEM)}.",
    )


def _curve(results: Mapping[str, Any]) -> str:
    """Levels, plot and table of one way of hearing."""
    untouched, begun = results[UNTOUCHED]["uar"], results[BEGUN]
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
            *_gaps(row),
        ]
        name = marked(percent(row["share"]), results)
        rows.append(f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    names = ("budget", "clips + validating", *_columns())
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in names)
    curve = figure(
        "UAR over the budget",
        "on speakers that no budget holds",
        plots.budgets(curves, begun["uar"], f"{BEGUN}, 0 labels"),
    )
    levels = (
        f"<p>{marked(UNTOUCHED, results[UNTOUCHED])}: {span(untouched)}; "
        f"{marked(BEGUN, results)}, 0 labels: {span(begun['uar'])}, "
        f"{span(begun['gain_over_untouched'], signed=True)} over the {UNTOUCHED}</p>"
    )
    return f"{levels}{curve}{wide('Budgets', head, rows)}"


def _columns() -> tuple[str, ...]:
    gaps = (f"gap to full training closed, {FINETUNED}", f"gap closed, {SCRATCH}", f"gap closed, from the {UNTOUCHED}")
    return (FINETUNED, "gain over what it begins with", SCRATCH, "gain over scratch", *gaps)


def _summary(results: Mapping[str, Any]) -> str:
    return (
        f"From {results['source']} ({results['source_corpus']}; members {', '.join(results['members'])}) to "
        f"{results['corpus']}, classes {', '.join(results['classes'])}: {results['draws']} draws of each budget of "
        f"{results['unit']}, tested on "
        f"{results['clips']} clips of {results['speakers']} other speakers, held against the {results['reference']}."
    )


def _notes(results: Mapping[str, Any]) -> Iterator[str]:
    if flatters := note([results, results[UNTOUCHED]]):
        yield flatters
    yield (
        "A budget pays for labels, those of the speakers that choose the epoch included: nothing else has one. Of fewer than "
        "five speakers none is held out, and the last epoch is kept. Audio without labels is there for every budget."
    )
    yield (
        "Members are joined by a soft vote. The untouched source is the whole ensemble as it is served; what budgets begin "
        "with is its chosen members, normalised on audio without labels unless the target file forbids it, before any epoch."
    )
    if clips := results.get("rehearsal"):
        yield f"Fine-tuned members practised {clips} clips of the source in each epoch, with their labels, beside the target's."
    if config := results.get("self_training"):
        yield (
            "Members, from scratch too, were trained on guesses of their own about the audio that a budget has not bought: "
            f"{config['rounds']} rounds, guesses to the power of {config['sharpness']:g}, a labelled clip as often as "
            f"{config['label_weight']} guessed ones. What budgets begin with at 0 labels has made no guess."
        )
    if turns := results["turns"]:
        yield (
            f"{len(turns)} divisions of the speakers, each tested on by members that were tuned on all the others; the tables "
            "put their clips together, so that every speaker is tested on once. A draw is one draw in each division."
        )
    for row in results["budgets"]:
        for system in (FINETUNED, SCRATCH):
            draws = ", ".join(f"{value:.3f}" for value in row["systems"][system]["by_draw"])
            yield f"{percent(row['share'])}, {system}, draw by draw: {draws}."


def _size(row: Mapping[str, Any]) -> str:
    """Clips of the draws, which may differ."""
    clips, held = (sorted(set(row[name])) for name in ("clips", "validating"))
    speakers = sorted(set(row["speakers"]))
    return f"{_span(clips)} + {_span(held)} of {_span(speakers)} speakers"


def _span(counts: list[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _gaps(row: Mapping[str, Any]) -> Iterator[str]:
    for system in (FINETUNED, SCRATCH):
        yield _percent(row["gap_closed"][system])
    yield _percent(row["gap_closed_from_untouched"])


def _percent(value: Mapping[str, float] | None) -> str:
    return "no gap" if value is None else f"{value['value']:.0%} [{value['low']:.0%}, {value['high']:.0%}]"
