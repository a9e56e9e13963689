"""The section of the report about one set of clips, from an evaluation as `train.evaluate.compare` makes it."""

from collections.abc import Mapping
from html import escape
from typing import Any, Final

from train import phrases, plots
from train.contamination import marked, note
from train.html_parts import figure, span, wide
from train.reference import ACTED

_KINDS: Final = {"before": "before", "after": "with the temperature", "prior_corrected": "prior corrected too"}


def evaluation_section(anchor: str, name: str, evaluation: Mapping[str, Any]) -> str:
    """Everything about one set of clips."""
    left_out = evaluation["without_reference"]
    missing = f" {left_out} clips without consensus count in no score." if left_out else ""
    truth = "the acted emotion" if evaluation["reference"] == ACTED else "the annotators' dominant vote"
    labels = {label: dict(found) for label, found in evaluation["class_f1"].items()}
    selection = evaluation["selection"]
    figures = [
        figure(
            "Confusion of the soup",
            "Rows: what it was. Columns: what the soup said. Share of the row, and clips.",
            plots.confusion(evaluation["confusion"]),
        ),
        figure("F1 of each class, soup", phrases.weakest(evaluation), plots.bars(labels, "F1 of each class", 1.0)),
        figure(
            "Reliability, before and after calibration",
            "On the line, confidence is what it says. A larger marker stands for more clips. Fitted on other speakers.",
            plots.reliability(evaluation["calibration"]["reliability"], evaluation["calibration"]["ece"], _KINDS),
        ),
        figure(
            "Risk and coverage",
            "How often the soup errs when only its surest clips are kept. " + phrases.telling_errors(evaluation),
            plots.risk_coverage(selection),
        ),
        figure(
            "Speakers",
            phrases.by_speaker(evaluation),
            plots.speakers(evaluation["by_speaker"]) + _genders(evaluation),
        ),
    ]
    if evaluation["attributes"]:
        figures.append(_attributes(evaluation["attributes"]))
    findings = [
        phrases.calibration(evaluation),
        phrases.prior(evaluation),
        phrases.abstaining(evaluation),
        _votes(evaluation),
    ]
    listed = "".join(f"<li>{escape(words)}</li>" for words in findings)
    return (
        f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(name)}</h2><p>{evaluation["clips"]} clips of '
        f"{phrases.whose(evaluation)}, held against {truth}.{missing}</p>"
        f'<p class="verdict">{escape(phrases.verdict(evaluation))}</p>{_systems(name, evaluation)}'
        f'<ul class="findings">{listed}</ul><div class="panels">{"".join(figures)}</div></section>'
    )


def _systems(name: str, evaluation: Mapping[str, Any]) -> str:
    """Every system with its intervals, and the soup's paired gain over it."""
    systems, gains = evaluation["systems"], evaluation["uar_gain_of_soup"]
    rated = any(score["voted_uar"] for score in systems.values())
    shown = [score["uar"] for score in systems.values()] + [evaluation["calibration"]["prior_corrected"]["uar"]]
    low, high = min(uar["low"] for uar in shown), max(uar["high"] for uar in shown)
    reach = max([abs(gain[side]) for gain in gains.values() for side in ("low", "high")], default=0.0) or 1.0
    rows = []
    for system, score in systems.items():
        gain = gains.get(system)
        paired = f"{span(gain, signed=True)}{plots.interval(gain, -reach, reach, zero=True)}" if gain else "-"
        cells = [
            f"{span(score['uar'])}{plots.interval(score['uar'], low, high)}",
            paired,
            span(score["macro_f1"]),
            span(score["micro_f1"]),
            *([span(score["voted_uar"])] if rated else []),
        ]
        chosen = "" if gain else ' class="chosen"'
        rows.append(
            f'<tr{chosen}><th scope="row">{escape(marked(system, score))}</th><td>{"</td><td>".join(cells)}</td></tr>'
        )
    corrected = evaluation["calibration"]["prior_corrected"]
    (soup,) = set(systems) - set(gains)
    rows.append(
        f'<tr><th scope="row">{marked("soup, prior corrected (reported, not used)", systems[soup])}</th>'
        f"<td>{span(corrected['uar'])}{plots.interval(corrected['uar'], low, high)}</td><td>-</td>"
        f"<td>{span(corrected['macro_f1'])}</td><td>{span(corrected['accuracy'])}</td>{'<td>-</td>' * rated}</tr>"
    )
    votes = '<th scope="col">UAR against votes</th>' if rated else ""
    head = (
        '<th scope="col">system</th><th scope="col">UAR</th><th scope="col">UAR gain of the soup over it, paired</th>'
        f'<th scope="col">macro-F1</th><th scope="col">micro-F1 = accuracy</th>{votes}'
    )
    flatters = note(systems.values())
    notes = [words for words in (flatters, phrases.alike(evaluation).strip()) if words]
    return wide(f"Systems on {name}", head, rows) + "".join(f'<p class="note">{escape(words)}</p>' for words in notes)


def _votes(evaluation: Mapping[str, Any]) -> str:
    if evaluation["soft_cross_entropy"] is None:
        return "Nobody rated these clips, so there is nothing to say about votes."
    return (
        f"To the annotators' vote vectors: soft cross-entropy {evaluation['soft_cross_entropy']:.3f} nats, Jensen-Shannon "
        f"distance {evaluation['jensen_shannon']:.3f} (0 is equal, 1 is disjoint)."
    )


def _genders(evaluation: Mapping[str, Any]) -> str:
    found = evaluation["genders"]
    if found is None:
        return '<p class="note">The corpus does not tell the gender of its speakers.</p>'
    rows = [
        f'<tr><th scope="row">{name}</th><td>{span(found[name]["uar"])}</td>'
        f"<td>{found[name]['speakers']} ({found[name]['clips']})</td></tr>"
        for name in ("female", "male")
    ]
    rows.append(f'<tr><th scope="row">difference</th><td>{span(found["gap"], signed=True)}</td><td></td></tr>')
    return (
        '<table class="small compact"><thead><tr><th scope="col">gender</th><th scope="col">UAR</th>'
        f'<th scope="col">speakers (clips)</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _attributes(attributes: Mapping[str, Any]) -> str:
    spans = {name: found["ccc"] for name, found in attributes.items()}
    rated = ", ".join(f"{name} {found['clips']}" for name, found in attributes.items())
    return figure(
        "CCC of the attributes", f"Agreement with the ratings. Rated clips: {rated}.", plots.bars(spans, "CCC", 1.0)
    )
