"""The report as one HTML page that needs nothing else: no script, no font, no file beside it.

Everything on it comes from the results of a run as plain data, and from what the run has cost.
"""

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from math import floor
from typing import Any, Final

from train import phrases, plots
from train.contamination import marked
from train.cost import Seconds
from train.cost_report import cost_section
from train.history import META
from train.html_evaluation import evaluation_section
from train.html_parts import figure, wide

_STEPS: Final = {"dev_macro_f1": 0.1, "loss": 0.5}
"""What the edges of the learning curves are rounded to."""


def page(results: Mapping[str, Any], cost: Seconds) -> str:
    """The whole page."""
    sets = {f"set-{number}": name for number, name in enumerate(results["evaluations"])}
    links = sets | {
        "calibration": "Calibration",
        "training": "Training and cost",
        "data": "Data",
        "words": "Words",
        "limits": "Limits",
    }
    nav = "".join(f'<li><a href="#{anchor}">{escape(name)}</a></li>' for anchor, name in links.items())
    sections = [evaluation_section(anchor, name, results["evaluations"][name]) for anchor, name in sets.items()]
    style = files("train").joinpath("report.css").read_text(encoding="utf-8")
    name = escape(results["name"])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}: report</title><style>{style}</style></head><body>"
        f'<header><h1>{name}</h1><p>{escape(results["summary"])}</p><nav aria-label="Contents"><ul>{nav}</ul></nav>'
        f"{_tiles(results['evaluations'])}</header><main>{''.join(sections)}{_calibration(results['calibration'])}"
        f"{_training(results, cost)}{_data(results)}{_words(results)}{_limits(results)}</main>"
        "<footer>Brackets and whiskers are 95 % intervals by bootstrap over speakers; of twenty "
        "comparisons of equals, one such interval leaves out 0 by chance. Everything here is in report.json "
        "(cost in cost.json); medusa-train report makes this page again from them.</footer></body></html>\n"
    )


def _tiles(evaluations: Mapping[str, Any]) -> str:
    tiles = []
    for name, evaluation in evaluations.items():
        soup = _soup(evaluation)
        shown = escape(marked(name, soup))
        tiles.append(
            f'<div class="tile"><span class="small">{shown}</span><strong>{soup["uar"]["value"]:.3f}</strong>'
            f'<span class="small muted">UAR of the soup, {soup["uar"]["low"]:.3f} to {soup["uar"]["high"]:.3f}<br>'
            f"chance {1 / len(evaluation['class_f1']):.3f}, macro-F1 {soup['macro_f1']['value']:.3f}</span></div>"
        )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _soup(evaluation: Mapping[str, Any]) -> Mapping[str, Any]:
    """The scores of the one system that has no gain over itself."""
    (name,) = set(evaluation["systems"]) - set(evaluation["uar_gain_of_soup"])
    found: Mapping[str, Any] = evaluation["systems"][name]
    return found


def _calibration(found: Mapping[str, Any]) -> str:
    rows = [
        f'<tr><th scope="row">{name}</th><td>{prior["heard"]:.3f}</td><td>{prior["taught"]:.3f}</td>'
        f"<td>{prior['log_ratio']:+.3f}</td></tr>"
        for name, prior in found["prior"].items()
    ]
    return (
        '<section aria-labelledby="calibration"><h2 id="calibration">Calibration</h2>'
        f"<p>Fitted on {phrases.calibrated_on(found)}, and judged above on others. "
        f"Temperature {found['temperature']:.3f}. The ensemble abstains below a confidence of {found['abstain_below']:.3f}: "
        f"the {found['abstain_quantile']:.0%} least confident of these clips. Its uncertainty is the Jensen-Shannon "
        "divergence of the members' posteriors, 0 to 1.</p>"
        + wide(
            "Class prior",
            '<th scope="col">class</th><th scope="col">share of development targets</th>'
            '<th scope="col">prior that training taught</th><th scope="col">log ratio</th>',
            rows,
        )
        + f"<p>{escape(phrases.STORING)}</p></section>"
    )


def _training(results: Mapping[str, Any], cost: Seconds) -> str:
    curves: Sequence[Mapping[str, Any]] = [row for row in results["learning_curves"] if row["member"] != META]
    runs: Sequence[Mapping[str, Any]] = [row for row in results["learning_curves"] if row["member"] == META]
    limits = _limits_of(curves)
    names = list(dict.fromkeys(row["member"] for row in curves))
    figures = [
        figure(name, "", plots.learning([row for row in curves if row["member"] == name], limits)) for name in names
    ]
    if runs:
        note = f"A line per run, on a scale of its own; {len(runs)} seeds. The last epoch is kept."
        figures.append(figure("Meta-classifiers", note, plots.learning(runs, _limits_of(runs))))
    told = (
        "<p>The thick line is the member trained on all training speakers, thin ones leave out a fold (for stage 3). The dot "
        "is the epoch that was kept. All members share one scale; stage 2 draws balanced subsets without class weights, so "
        "its loss is another one.</p>"
    )
    return (
        '<section aria-labelledby="training"><h2 id="training">Training and cost</h2>'
        + (
            f'{told}<div class="panels even">{"".join(figures)}</div>'
            if figures
            else "<p>No learning curves were kept.</p>"
        )
        + f"{_fits(results.get('linear_fits', ()))}{cost_section(cost)}</section>"
    )


def _fits(fits: Sequence[Mapping[str, Any]]) -> str:
    """Linear members have no epochs: what was tried of each, and what was kept."""
    if not fits:
        return ""
    tried = list(dict.fromkeys(l2 for row in fits for l2 in row["l2"]))
    rows = []
    for row in fits:
        scores = dict(zip(row["l2"], row["dev_macro_f1"], strict=True))
        shown = "".join(f"<td>{scores[l2]:.3f}</td>" if l2 in scores else "<td></td>" for l2 in tried)
        name = row["member"] + ("" if row["fold"] is None else f", without fold {row['fold']}")
        kept = "what it began with" if row["kept"] is None else f"{row['kept']:g}"
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{shown}<td>{kept}</td></tr>')
    heads = "".join(f'<th scope="col">l2 = {l2:g}</th>' for l2 in tried)
    head = f'<th scope="col">member</th>{heads}<th scope="col">kept</th>'
    return wide("Linear members: held-out macro-F1 by the strength of the pull on their weights", head, rows)


def _limits_of(curves: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Edges of the learning curves, for all of `curves` alike."""
    return {key: _outer([v for row in curves for v in row[key]], step) for key, step in _STEPS.items() if curves}


def _outer(values: Sequence[float], step: float) -> tuple[float, float]:
    """The nearest multiples of `step` below and above all values."""
    return floor(min(values) / step) * step, (floor(max(values) / step) + 1) * step


def _data(results: Mapping[str, Any]) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in results["data"])
    built = "".join(f"<li>{escape(phrases.built_on(part))}</li>" for part in results["builds_on"])
    rows = [
        f'<tr><th scope="row">{escape(corpus)}</th><td class="words">{escape(reason)}</td><td>{count}</td></tr>'
        for corpus, reasons in results["dropped"].items()
        for reason, count in (reasons or {"nothing": 0}).items()
    ]
    tables = "".join(
        f"<li>{escape(name)}: {escape(evaluation['predictions'])}</li>"
        for name, evaluation in results["evaluations"].items()
        if "predictions" in evaluation
    )
    return (
        f'<section aria-labelledby="data"><h2 id="data">Data</h2><ul>{lines}{built}</ul>'
        + wide(
            "Rows left out",
            '<th scope="col">corpus</th><th scope="col" class="words">reason</th><th scope="col">rows</th>',
            rows,
        )
        + (f"<p>Posteriors of every clip, in the run's folder:</p><ul>{tables}</ul>" if tables else "")
        + "</section>"
    )


def _words(results: Mapping[str, Any]) -> str:
    if not results["words"]:
        return ""
    rows = [
        f'<tr><th scope="row">{escape(row["text"] or "(none)")}</th><td>{escape(row["top"])}</td>'
        f'<td class="words">{escape(row["shown"])}</td></tr>'
        for row in results["words"]
    ]
    return (
        f'<section aria-labelledby="words"><h2 id="words">What words do</h2><p>{escape(results["words_note"])}</p>'
        + wide(
            "",
            '<th scope="col">words</th><th scope="col">top class</th><th scope="col" class="words">probabilities</th>',
            rows,
            "words",
        )
        + "</section>"
    )


def _limits(results: Mapping[str, Any]) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in results["limits"])
    return f'<section aria-labelledby="limits"><h2 id="limits">Limits</h2><ul>{lines}</ul></section>'
