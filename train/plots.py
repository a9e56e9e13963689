"""Plots of the report as inline SVG: no library, no script; colours and fonts come from the page's style sheet.

A plot is 360 units wide, the width of a phone, so that its words are readable there and larger elsewhere. Every series
has its own marker and dash beside its colour. Every plot carries what it shows as words, for those who do not see it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from model.labels import CLASSES
from train.phrases import percent
from train.svg import WIDTH, line, path, svg, text

_MARKERS: Final = ("circle", "square", "triangle")
_MANY_SPEAKERS: Final = 80
_FIFTHS: Final = (0, 0.2, 0.4, 0.6, 0.8, 1)
Span = Mapping[str, float]
"""An estimate as plain data: value, low, high."""


@dataclass(frozen=True, slots=True)
class Axes:
    """A rectangle on the canvas and the values at its edges; `low` and `high` are (x, y)."""

    low: tuple[float, float]
    high: tuple[float, float]
    left: float = 44
    top: float = 10
    width: float = 300
    height: float = 210

    def x(self, value: float) -> float:
        """Canvas position of a horizontal value."""
        return self.left + self.width * (value - self.low[0]) / (self.high[0] - self.low[0])

    def y(self, value: float) -> float:
        """Canvas position of a vertical value; larger is higher."""
        return self.top + self.height * (1 - (value - self.low[1]) / (self.high[1] - self.low[1]))

    def points(self, xs: Iterable[float], ys: Iterable[float]) -> list[tuple[float, float]]:
        """Canvas positions of a series."""
        return [(self.x(a), self.y(b)) for a, b in zip(xs, ys, strict=True)]


def reliability(kinds: Mapping[str, Mapping[str, Any]], errors: Mapping[str, float], names: Mapping[str, str]) -> str:
    """Accuracy over confidence of each kind of posterior; a marker's area tells how many clips it stands for.

    Args:
        kinds: kind -> bins as `train.calibration.Reliability` has them.
        errors: kind -> ECE.
        names: kind -> what the legend calls it.
    """
    axes = Axes((0, 0), (1, 1), height=260)
    body = [_grid(axes, _FIFTHS, _FIFTHS, ("confidence", "accuracy"))]
    body.append(line((axes.x(0), axes.y(0)), (axes.x(1), axes.y(1)), "ideal"))
    told = []
    for number, (kind, bins) in enumerate(kinds.items()):
        points, total = axes.points(bins["confidence"], bins["accuracy"]), sum(bins["count"])
        body.append(path(points, f"series s{number}"))
        for point, count in zip(points, bins["count"], strict=True):
            body.append(_marker(point, number, 2 + 9 * (count / total) ** 0.5))
        body.append(_legend(number, 326 + 19 * number, f"{names[kind]}: ECE {errors[kind]:.3f}"))
        told.append(f"{names[kind]}: expected calibration error {errors[kind]:.3f}")
    return svg(320 + 19 * len(kinds), "Reliability diagram. " + "; ".join(told) + ".", body)


def risk_coverage(selection: Mapping[str, Any]) -> str:
    """Share of wrong guesses over the share of clips kept, with the abstention threshold."""
    orders = selection["orders"]
    highest = max(max(order["risk"]) for order in orders.values())
    top = min(1.0, max(0.2, -(-highest * 10 // 1) / 10))
    axes = Axes((0, 0), (1, top))
    steps = [round(0.1 * n, 1) for n in range(int(top * 10) + 1)]
    body = [_grid(axes, _FIFTHS, steps[:: 2 if top > 0.6 else 1], ("share of clips kept", "share wrong"))]
    told = []
    for number, (name, order) in enumerate(orders.items()):
        body.append(path(axes.points(order["coverage"], order["risk"]), f"series s{number}"))
        body.append(_legend(number, 278 + 19 * number, f"kept by {name}: area {order['area']:.3f}", marked=False))
        told.append(f"kept by {name}, the area under the curve is {order['area']:.3f}")
    if selection["risk"] is not None:
        kept, risk = selection["coverage"], selection["risk"]
        body.append(line((axes.x(kept), axes.y(0)), (axes.x(kept), axes.y(top)), "mark"))
        body.append(_marker((axes.x(kept), axes.y(risk)), 0, 5))
        words = f"abstains below {selection['abstain_below']:.2f}: keeps {kept:.0%}, {risk:.0%} wrong"
        body.append(_legend(0, 278 + 19 * len(orders), words, line=False))
        told.append(words)
    return svg(272 + 19 * (len(orders) + 1), "Risk-coverage curve. " + "; ".join(told) + ".", body)


def bars(rows: Mapping[str, Span | float], unit: str, most: float | None = None, label_width: int = 84) -> str:
    """Horizontal bars with the intervals of those that have one.

    Args:
        rows: name -> value, or value with its interval.
        unit: what the values are, for those who do not see the plot.
        most: value at the right edge; the largest if it is not given.
        label_width: room for the names.
    """
    spans = {n: v if isinstance(v, Mapping) else {"value": v, "low": v, "high": v} for n, v in rows.items()}
    most = most or max(span["high"] for span in spans.values()) or 1.0
    least = min(0.0, *(span["low"] for span in spans.values()))
    step, right = 27, 52
    axes = Axes((least, 0), (most, 1), left=label_width, width=WIDTH - label_width - right)
    body, told = [], []
    for number, (name, span) in enumerate(spans.items()):
        middle, ends = 14 + step * number, sorted((axes.x(0), axes.x(span["value"])))
        body.append(text((label_width - 8, middle + 4), name, "label end"))
        size = f'width="{max(ends[1] - ends[0], 1):.1f}" height="16"'
        body.append(f'<rect class="bar" x="{ends[0]:.1f}" y="{middle - 8}" {size}/>')
        shown = f"{span['value']:.2f}" if most <= 1 else f"{span['value']:,.1f}"
        if span["high"] > span["low"]:
            body.append(_whisker(axes.x(span["low"]), axes.x(min(span["high"], most)), middle))
            shown_interval = f" ({span['low']:.2f} to {span['high']:.2f})"
        else:
            shown_interval = ""
        body.append(text((WIDTH - right + 8, middle + 4), shown, "value"))
        told.append(f"{name} {shown}{shown_interval}")
    return svg(step * len(spans) + 4, f"Bars, {unit}: " + ", ".join(told) + ".", body)


def learning(curves: Sequence[Mapping[str, Any]], limits: Mapping[str, tuple[float, float]]) -> str:
    """Held-out macro-F1 above, loss below, of one member: stage 1, then stage 2; folds, and runs of stage 3, are thin.

    Args:
        curves: rows of `train.history.learning_curves` of one member, or all of `meta_curves`.
        limits: least and greatest value of "dev_macro_f1" and of "loss", shared by all members.
    """
    by_fold: dict[int | None, list[Mapping[str, Any]]] = {}
    for row in sorted(curves, key=lambda row: str(row["stage"])):
        by_fold.setdefault(row.get("seed", row["fold"]), []).append(row)
    stages = sorted({str(row["stage"]).replace("stage", "stage ") for row in curves})
    epochs = max(sum(len(row["loss"]) for row in rows) for rows in by_fold.values())
    first = max(len(rows[0]["loss"]) for rows in by_fold.values())
    every = max(1, -(-epochs // 8))
    body, told = [], ""
    for top, height, key, name in ((20, 130, "dev_macro_f1", "held-out macro-F1"), (178, 70, "loss", "loss")):
        low, high = limits[key]
        axes = Axes((0.5, low), (epochs + 0.5, high), top=top, height=height)
        numbers = [n for n in range(1, epochs + 1) if (n - 1) % every == 0] if key == "loss" else []
        levels = [low + (high - low) * part / 2 for part in range(3)]
        body.append(_levels(axes, levels, 2) + _columns(axes, numbers, 0))
        body.append(text((axes.left + axes.width, top - 6), name, "tick end"))
        if len(stages) > 1:
            body.append(line((axes.x(first + 0.5), top), (axes.x(first + 0.5), top + height), "mark"))
        for fold in sorted(by_fold, key=lambda fold: (fold is None, fold)):
            values = [value for row in by_fold[fold] for value in row[key]]
            style = "series s0" if fold is None else "fold"
            body.append(path(axes.points(range(1, len(values) + 1), values), style))
        start = 1
        for row in by_fold.get(None, []):
            best = row["best_epoch"]
            if best < 0:  # no epoch was better than what the stage began with
                told += f" {row['stage']}: what it began with was kept." if key == "loss" else ""
                start += len(row[key])
                continue
            body.append(_marker((axes.x(start + best), axes.y(row[key][best])), 0, 4))
            if key == "dev_macro_f1":
                told += f" {row['stage']}: best {row[key][best]:.3f} at epoch {best + 1} of {len(row[key])}."
            start += len(row[key])
    body.append(text((44 + 150, 280), f"epoch ({' | '.join(stages)})", "axis mid"))
    return svg(288, "Learning curves." + told, body)


def budgets(curves: Mapping[str, Mapping[float, Span]], level: Span, level_name: str) -> str:
    """UAR of each system over the share of a corpus' labels that it has seen, with intervals; a line for what saw none.

    Args:
        curves: system -> share (0..1) -> UAR.
        level: UAR without any label.
        level_name: what it is of.
    """
    spans = [level, *(span for points in curves.values() for span in points.values())]
    low, high = (max(0.0, min(s["low"] for s in spans) - 0.03), min(1.0, max(s["high"] for s in spans) + 0.03))
    shares = sorted({share for points in curves.values() for share in points})
    axes = Axes((-0.5, low), (len(shares) - 0.5, high), height=220)
    bottom = axes.top + axes.height
    levels = [low + (high - low) * part / 4 for part in range(5)]
    body, told = [_levels(axes, levels, 2)], [f"{level_name} {level['value']:.3f}"]
    body += [text((axes.x(n), bottom + 15), percent(share), "tick mid") for n, share in enumerate(shares)]
    body.append(text((axes.left + axes.width / 2, bottom + 31), "share of the labels", "axis mid"))
    body.append(line((axes.left, axes.y(level["value"])), (axes.left + axes.width, axes.y(level["value"])), "mark"))
    body.append(text((axes.left + axes.width, axes.y(level["value"]) - 5), level_name, "tick end"))
    for number, (name, points) in enumerate(curves.items()):
        aside = 0.08 * (number - (len(curves) - 1) / 2)
        places = [(axes.x(shares.index(share) + aside), span) for share, span in sorted(points.items())]
        body.append(path([(x, axes.y(span["value"])) for x, span in places], f"series s{number}"))
        for x, span in places:
            body.append(line((x, axes.y(span["low"])), (x, axes.y(span["high"])), "whisker"))
            body.append(_marker((x, axes.y(span["value"])), number, 4))
        body.append(_legend(number, bottom + 56 + 19 * number, name))
        told.append(
            f"{name}: " + ", ".join(f"{percent(share)} {s['value']:.3f}" for share, s in sorted(points.items()))
        )
    return svg(bottom + 50 + 19 * len(curves), "UAR over the share of labels. " + "; ".join(told) + ".", body)


def speakers(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """UAR of every speaker, from the lowest to the highest; the marker tells the gender where it is known."""
    ranked = sorted(scores.items(), key=lambda item: item[1]["uar"])
    axes = Axes((0, 0), (len(ranked) + 1, 1), height=180)
    body = [_grid(axes, [], _FIFTHS, ("speakers, from the lowest to the highest", "UAR"))]
    kinds = {"female": 0, "male": 1, "": 2}
    dense = len(ranked) > _MANY_SPEAKERS
    body.append('<g class="dense">' if dense else "<g>")
    for place, (_, score) in enumerate(ranked, 1):
        body.append(_marker((axes.x(place), axes.y(score["uar"])), kinds[score["gender"]], 2.2 if dense else 4))
    body.append("</g>")
    present = [name for name in kinds if any(score["gender"] == name for _, score in ranked)]
    for number, name in enumerate(present):
        body.append(_legend(kinds[name], 246 + 19 * number, name or "gender not told", line=False))
    values = [score["uar"] for _, score in ranked]
    middle = values[len(values) // 2]
    told = f"UAR of {len(values)} speakers: lowest {values[0]:.2f}, median {middle:.2f}, highest {values[-1]:.2f}."
    return svg(240 + 19 * len(present), told, body)


def interval(span: Span, low: float, high: float, zero: bool = False) -> str:
    """A dot with its interval for a table's cell, which says the same in figures.

    Where all intervals of a table are one point, `low` equal to `high`, it stands in the middle.
    """
    if high <= low:
        low, high = low - 0.5, low + 0.5
    axes = Axes((low, 0), (high, 1), left=4, top=0, width=112, height=18)
    body = [line((axes.x(0), 1), (axes.x(0), 17), "mark")] if zero else []
    body.append(_whisker(axes.x(span["low"]), axes.x(span["high"]), 9))
    body.append(_marker((axes.x(span["value"]), 9), 0, 4))
    return f'<svg class="mini" viewBox="0 0 120 18" aria-hidden="true">{"".join(body)}</svg>'


def confusion(matrix: Sequence[Sequence[int]]) -> str:
    """A real table, shaded by the share of each row: classes that neither occur nor are guessed are left out."""
    shown = [i for i in range(len(CLASSES)) if sum(matrix[i]) or sum(row[i] for row in matrix)]
    head = "".join(f'<th scope="col"><span>{CLASSES[j]}</span></th>' for j in shown)
    rows = []
    for i in shown:
        total = sum(matrix[i])
        cells = []
        for j in shown:
            share = matrix[i][j] / max(1, total)
            tone = " strong" * (share >= 0.52) + " full" * (share >= 0.75) + " hit" * (i == j)
            cells.append(
                f'<td class="cell{tone}" style="--share:{share:.0%}"><b>{share:.0%}</b> <i>{_count(matrix[i][j])}</i></td>'
            )
        rows.append(f'<tr><th scope="row">{CLASSES[i]}</th>{"".join(cells)}</tr>')
    return f'<table class="confusion"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _count(clips: int) -> str:
    """A count that fits a cell."""
    return str(clips) if clips < 10_000 else f"{clips / 1000:.0f}k"


def _grid(axes: Axes, xs: Sequence[float], ys: Sequence[float], names: tuple[str, str]) -> str:
    """Lines and figures at `xs` and `ys`, and the names of the two axes."""
    bottom, middle = axes.top + axes.height, axes.top + axes.height / 2
    lines = "".join(line((axes.x(v), axes.top), (axes.x(v), bottom), "grid") for v in xs)
    across = text((axes.left + axes.width / 2, bottom + (31 if xs else 20)), names[0], "axis mid")
    up = f'<text class="axis mid" transform="rotate(-90 12 {middle:.1f})" x="12" y="{middle:.1f}">{names[1]}</text>'
    return lines + _columns(axes, xs, 1) + _levels(axes, ys, 1) + across + up


def _levels(axes: Axes, levels: Sequence[float], digits: int) -> str:
    right = axes.left + axes.width
    lines = (line((axes.left, axes.y(v)), (right, axes.y(v)), "grid") for v in levels)
    return "".join(lines) + "".join(text((axes.left - 6, axes.y(v) + 4), f"{v:.{digits}f}", "tick end") for v in levels)


def _columns(axes: Axes, values: Sequence[float], digits: int) -> str:
    return "".join(text((axes.x(v), axes.top + axes.height + 15), f"{v:.{digits}f}", "tick mid") for v in values)


def _whisker(left: float, right: float, y: float) -> str:
    return f'<path class="whisker" d="M{left:.1f},{y} H{right:.1f} M{left:.1f},{y - 4} v8 M{right:.1f},{y - 4} v8"/>'


def _marker(place: tuple[float, float], number: int, size: float) -> str:
    """The marker of a series: circle, square or triangle, all of about one area."""
    x, y = place
    kind = _MARKERS[number % len(_MARKERS)]
    if kind == "circle":
        return f'<circle class="m{number}" cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"/>'
    if kind == "square":
        side = 0.9 * size
        return f'<rect class="m{number}" x="{x - side:.1f}" y="{y - side:.1f}" width="{2 * side:.1f}" height="{2 * side:.1f}"/>'
    wide = 1.15 * size
    return f'<path class="m{number}" d="M{x:.1f},{y - wide:.1f} l{wide:.1f},{2 * wide:.1f} h{-2 * wide:.1f} z"/>'


def _legend(number: int, y: float, words: str, line: bool = True, marked: bool = True) -> str:
    parts = [path([(46, y - 4), (74, y - 4)], f"series s{number}")] if line else []
    parts += [_marker((60, y - 4), number, 4.5)] if marked else []
    return "".join(parts) + text((82, y), words, "label")
