"""Reports: one JSON, one self-contained HTML page, and the model card that travels with the bundle."""

import html
import json
from pathlib import Path
from typing import Any

from model.labels import CLASSES

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .7rem;border-bottom:1px solid #d0d7de;text-align:right}
td:first-child,th:first-child{text-align:left}caption{text-align:left;font-weight:600;padding:.3rem 0}
.bar{display:inline-block;height:.7rem;background:#4c72b0}
"""


def estimate(value: dict[str, float] | None) -> str:
    """A value with its 95 % interval, as text."""
    if value is None:
        return "-"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def verdict(evaluation: dict[str, Any]) -> str:
    """Plainly, whether the soup is better than each other system: only an interval that leaves out 0 decides."""
    better: list[str] = []
    worse: list[str] = []
    even: list[str] = []
    for system, gain in evaluation["uar_gain_of_soup"].items():
        (better if gain["low"] > 0 else worse if gain["high"] < 0 else even).append(system)
    groups = (("better than", better), ("worse than", worse), ("not distinguishable from", even))
    return "The soup is " + "; ".join(f"{words} {', '.join(names)}" for words, names in groups if names) + "."


def write_report(folder: Path, results: dict[str, Any]) -> Path:
    """Writes `report.json` and `report.html` and returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    sections = [_section(name, evaluation) for name, evaluation in results["evaluations"].items()]
    body = f"<h1>{html.escape(results['name'])}</h1><p>{html.escape(results['summary'])}</p>" + "".join(sections)
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>Report</title><style>{_STYLE}</style>{body}</html>"
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _section(name: str, evaluation: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(system)}</td><td>{estimate(score['uar'])}</td><td>{estimate(score['macro_f1'])}</td>"
        f"<td>{estimate(score['accuracy'])}</td><td>{estimate(score['voted_uar'])}</td>"
        f"<td>{estimate(evaluation['uar_gain_of_soup'].get(system))}</td></tr>"
        for system, score in evaluation["systems"].items()
    )
    bars = "".join(
        f"<tr><td>{name_}</td><td>{value:.3f}</td><td style='text-align:left'>"
        f"<span class=bar style='width:{value * 20:.1f}rem'></span></td></tr>"
        for name_, value in evaluation["class_f1"].items()
    )
    return (
        f"<h2>{html.escape(name)}</h2><p>{evaluation['clips']} clips of {evaluation['speakers']} speakers that no stage "
        f"saw; 95 % intervals by bootstrap over speakers.</p><table><caption>Systems</caption><tr><th>system<th>UAR"
        f"<th>macro-F1<th>accuracy<th>UAR against votes<th>UAR gain of the soup</tr>{rows}</table>"
        f"<p>{html.escape(verdict(evaluation))}</p>"
        f"<table><caption>F1 per class, soup</caption>{bars}</table>{_confusion(evaluation['confusion'])}"
        f"<p>Soft cross-entropy to the votes {evaluation['soft_cross_entropy']:.3f} nats, Jensen-Shannon distance "
        f"{evaluation['jensen_shannon']:.3f}, ECE {evaluation['ece_intended']:.3f}.</p>"
    )


def _confusion(matrix: list[list[int]]) -> str:
    shown = [i for i in range(len(CLASSES)) if sum(matrix[i]) or sum(row[i] for row in matrix)]
    head = "".join(f"<th>{CLASSES[i]}" for i in shown)
    rows = "".join(
        f"<tr><td>{CLASSES[i]}</td>"
        + "".join(
            f"<td style='background:rgba(76,114,176,{matrix[i][j] / max(1, sum(matrix[i])):.2f})'>{matrix[i][j]}</td>"
            for j in shown
        )
        + "</tr>"
        for i in shown
    )
    return f"<table><caption>Confusion, soup (rows: intended, columns: predicted)</caption><tr><th>{head}</tr>{rows}</table>"


def model_card(results: dict[str, Any]) -> str:
    """MODEL_CARD.md of a trained ensemble."""
    lines = [f"# Model card: {results['name']}", "", results["summary"], "", "## Data and licence", ""]
    lines += [f"- {line}" for line in results["data"]]
    for name, evaluation in results["evaluations"].items():
        lines += ["", f"## Results on {name}", ""]
        lines += [
            f"{evaluation['clips']} clips of {evaluation['speakers']} speakers that no stage has seen. Brackets are 95 % "
        ]
        lines += [
            "intervals by bootstrap over speakers; the gain is the soup's UAR minus the row's on the same clips.",
            "",
        ]
        lines += ["| system | UAR | macro-F1 | UAR against votes | gain of the soup |", "|---|---|---|---|---|"]
        for system, score in evaluation["systems"].items():
            gain = estimate(evaluation["uar_gain_of_soup"].get(system))
            lines.append(
                f"| {system} | {estimate(score['uar'])} | {estimate(score['macro_f1'])} "
                f"| {estimate(score['voted_uar'])} | {gain} |"
            )
        lines += ["", verdict(evaluation)]
        f1 = ", ".join(f"{label} {value:.2f}" for label, value in evaluation["class_f1"].items())
        lines += [
            "",
            f"F1 per class of the soup: {f1}. ECE {evaluation['ece_intended']:.3f}; Jensen-Shannon distance to the",
        ]
        lines += [f"vote vectors {evaluation['jensen_shannon']:.3f}."]
    lines += [
        "",
        "## What words do",
        "",
        results["words_note"],
        "",
        "| words | top class | probabilities |",
        "|---|---|---|",
    ]
    lines += [f"| {row['text'] or '(none)'} | {row['top']} | {row['shown']} |" for row in results["words"]]
    lines += ["", "## Limits", ""] + [f"- {line}" for line in results["limits"]]
    return "\n".join(lines) + "\n"
