"""The files that a run leaves for people: the results as JSON, the page, and the model card that travels with the bundle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from train import phrases
from train.contamination import marked, note
from train.cost import read_cost
from train.errors import ReportError
from train.html_report import page
from train.phrases import estimate

FORMAT: Final = 2
"""Of `report.json`; a change that an older reader would misread takes the next number."""
RESULTS_FILE: Final = "report.json"
PAGE_FILE: Final = "report.html"
CARD_FILE: Final = "MODEL_CARD.md"
_DRAWN: Final = ("by_speaker",)
"""Parts of an evaluation that are there to be drawn, and too long for a bundle's manifest."""


def write_report(folder: Path, results: Mapping[str, Any]) -> Path:
    """Writes the results, and from them the page and the card; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS_FILE).write_text(json.dumps(results, indent=1, allow_nan=False), encoding="utf-8")
    return render(folder)


def read_results(folder: Path) -> dict[str, Any]:
    """The results of a finished run.

    Raises:
        ReportError: if there are none, or another version wrote them.
    """
    path = folder / RESULTS_FILE
    if not path.is_file():
        raise ReportError(f"{path} does not exist: finish a run first (medusa-train run --out {folder})")
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if results.get("format") != FORMAT:
        raise ReportError(
            f"{path} has the format {results.get('format')}, this program reads {FORMAT}: run medusa-train run --out {folder} "
            "again; what is trained stays"
        )
    return results


def render(folder: Path) -> Path:
    """Writes the page and the card from what a run's folder holds; returns the page's path.

    Raises:
        ReportError: if the folder holds no results, or another version wrote them.
    """
    results = read_results(folder)
    (folder / CARD_FILE).write_text(model_card(results), encoding="utf-8")
    path = folder / PAGE_FILE
    path.write_text(page(results, read_cost(folder)), encoding="utf-8")
    return path


def scores_of(evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The evaluations of the ensemble itself, without their curves: what a checkpoint and a bundle carry."""
    short: dict[str, Any] = {}
    for name, evaluation in evaluations.items():
        if evaluation.get(phrases.BY_FOLDS):
            continue
        short[name] = {key: value for key, value in evaluation.items() if key not in _DRAWN}
        short[name]["calibration"] = {k: v for k, v in evaluation["calibration"].items() if k != "reliability"}
        orders = evaluation["selection"]["orders"].items()
        kept = {kind: {k: order[k] for k in ("area", "error_auroc")} for kind, order in orders}
        short[name]["selection"] = {**evaluation["selection"], "orders": kept}
    return short


def model_card(results: Mapping[str, Any]) -> str:
    """MODEL_CARD.md of a trained ensemble."""
    lines = [f"# Model card: {results['name']}", "", results["summary"], "", "## Data and licence", ""]
    lines += [f"- {line}" for line in results["data"]]
    lines += [f"- {phrases.built_on(part)}" for part in results["builds_on"]]
    for name, evaluation in results["evaluations"].items():
        lines += ["", f"## Results on {name}", "", *_results(evaluation)]
    lines += ["", "## Calibration", "", _calibration(results["calibration"])]
    if results["words"]:
        lines += ["", "## What words do", "", results["words_note"], ""]
        lines += ["| words | top class | probabilities |", "|---|---|---|"]
        lines += [f"| {row['text'] or '(none)'} | {row['top']} | {row['shown']} |" for row in results["words"]]
    lines += ["", "## Limits", ""] + [f"- {line}" for line in results["limits"]]
    return "\n".join(lines) + "\n"


def _results(evaluation: Mapping[str, Any]) -> list[str]:
    rated = any(score["voted_uar"] for score in evaluation["systems"].values())
    votes = " UAR against votes |" if rated else ""
    lines = [
        f"{evaluation['clips']} clips of {phrases.whose(evaluation)}, held against the",
        f"{evaluation['reference']}. Brackets are 95 % intervals by bootstrap over speakers; the gain is the soup's UAR",
        f"minus the row's on the same clips.{phrases.alike(evaluation)}",
        "",
        f"| system | UAR | macro-F1 | micro-F1 = accuracy |{votes} gain of the soup |",
        "|---|---|---|---|---|" + "---|" * rated,
    ]
    for system, score in evaluation["systems"].items():
        cells = [score["uar"], score["macro_f1"], score["micro_f1"], *([score["voted_uar"]] if rated else [])]
        cells.append(evaluation["uar_gain_of_soup"].get(system))
        lines.append(f"| {marked(system, score)} | {' | '.join(map(estimate, cells))} |")
    flatters = note(evaluation["systems"].values())
    lines += ["", flatters] if flatters else []
    f1 = ", ".join(f"{label} {found['value']:.2f}" for label, found in evaluation["class_f1"].items())
    lines += ["", phrases.verdict(evaluation), "", f"F1 per class of the soup: {f1}. {phrases.weakest(evaluation)}"]
    lines += ["", f"{phrases.calibration(evaluation)} {phrases.prior(evaluation)} {phrases.abstaining(evaluation)}"]
    if evaluation["jensen_shannon"] is not None:
        lines += ["", f"Jensen-Shannon distance to the vote vectors {evaluation['jensen_shannon']:.3f}."]
    ccc = [f"{name} {estimate(found['ccc'])}" for name, found in evaluation["attributes"].items()]
    return [*lines, *(["", f"CCC of the attributes: {', '.join(ccc)}."] if ccc else []), *_gap(evaluation)]


def _gap(evaluation: Mapping[str, Any]) -> list[str]:
    found = evaluation["genders"]
    if found is None:
        return []
    shown = [f"{name} {estimate(found[name]['uar'])}" for name in ("female", "male")]
    return ["", f"UAR of the soup by gender: {', '.join(shown)}; difference {estimate(found['gap'])}."]


def _calibration(found: Mapping[str, Any]) -> str:
    ratios = ", ".join(f"{name} {prior['log_ratio']:+.2f}" for name, prior in found["prior"].items())
    return (
        f"Fitted on {phrases.calibrated_on(found)}: temperature "
        f"{found['temperature']:.3f}; abstains below a confidence of {found['abstain_below']:.3f}; log prior ratio {ratios}. "
        + phrases.STORING
    )
