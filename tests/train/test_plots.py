import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.labels import CLASSES
from tests.train.results import make_evaluation, make_reference
from train import plots
from train.html_evaluation import evaluation_section
from train.plots import Axes
from train.svg import WIDTH

EVALUATION = make_evaluation(make_reference())
finite = st.floats(-1e3, 1e3)


def span(low: float, value: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def inside(svg: str) -> bool:
    """Whether every coordinate that a plot names lies on its canvas."""
    box = re.search(r'viewBox="0 0 (\d+) (\d+)"', svg)
    assert box is not None
    wide, high = map(float, box.groups())
    xs = [float(v) for v in re.findall(r'(?: x| x1| x2| cx)="([-\d.]+)"', svg)]
    ys = [float(v) for v in re.findall(r'(?: y| y1| y2| cy)="([-\d.]+)"', svg)]
    points = [tuple(map(float, point.split(","))) for point in re.findall(r"[ML ]([-\d.]+,[-\d.]+)", svg)]
    xs += [point[0] for point in points]
    ys += [point[1] for point in points]
    return len(xs) >= 3 and all(0 <= x <= wide for x in xs) and all(0 <= y <= high for y in ys)


@given(st.tuples(finite, finite), st.floats(0.1, 100), st.floats(0, 1), st.floats(0, 1))
def test_axes_put_edges_on_edges_and_larger_values_higher(
    low: tuple[float, float], size: float, first: float, second: float
) -> None:
    axes = Axes(low, (low[0] + size, low[1] + size))
    assert axes.x(low[0]) == pytest.approx(axes.left)
    assert axes.x(low[0] + size) == pytest.approx(axes.left + axes.width)
    assert axes.y(low[1]) == pytest.approx(axes.top + axes.height)
    assert axes.y(low[1] + size) == pytest.approx(axes.top)
    if first > second:
        assert axes.y(low[1] + first * size) <= axes.y(low[1] + second * size)
        assert axes.x(low[0] + first * size) >= axes.x(low[0] + second * size)


def test_plots_of_an_evaluation_stay_on_their_canvas() -> None:
    calibration = EVALUATION["calibration"]
    names = dict.fromkeys(calibration["ece"], "a kind")
    drawn = (
        plots.reliability(calibration["reliability"], calibration["ece"], names),
        plots.risk_coverage(EVALUATION["selection"]),
        plots.bars(EVALUATION["class_f1"], "F1", 1.0),
        plots.speakers(EVALUATION["by_speaker"]),
    )
    for svg in drawn:
        assert inside(svg)
        assert f'viewBox="0 0 {WIDTH} ' in svg


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8))
def test_bars_are_as_long_as_their_values(rows: list[tuple[float, float, float]]) -> None:
    spans = {f"class {n}": span(*sorted(row)) for n, row in enumerate(rows)}
    svg = plots.bars(spans, "F1", 1.0)
    assert inside(svg)
    lengths = [float(v) for v in re.findall(r'<rect class="bar"[^>]* width="([\d.]+)"', svg)]
    whole = WIDTH - 84 - 52
    assert lengths == pytest.approx([max(1.0, whole * s["value"]) for s in spans.values()], abs=0.06)
    for name, found in spans.items():
        assert f"{name} {found['value']:.2f}" in svg


def test_the_largest_cost_fills_the_width_and_zero_is_still_a_bar() -> None:
    svg = plots.bars({"stage 1": 1200.0, "stage 2": 0.0}, "seconds")
    assert [float(v) for v in re.findall(r'<rect[^>]* width="([\d.]+)"', svg)] == [WIDTH - 84 - 52, 1.0]
    assert "stage 1 1,200.0" in svg
    assert inside(plots.bars({"nothing": 0.0}, "seconds"))


def test_a_negative_agreement_grows_to_the_left_of_zero() -> None:
    svg = plots.bars({"arousal": span(-0.5, -0.25, 0.0), "valence": span(0.0, 0.25, 0.5)}, "CCC", 1.0)
    assert inside(svg)
    places = [tuple(map(float, found)) for found in re.findall(r'<rect[^>]* x="([\d.]+)"[^>]* width="([\d.]+)"', svg)]
    (first, wide), (second, same) = places
    assert first + wide == pytest.approx(second, abs=0.11)
    assert wide == pytest.approx(same, abs=0.11)
    assert "arousal -0.25 (-0.50 to 0.00)" in svg


def test_series_differ_by_more_than_colour() -> None:
    calibration = EVALUATION["calibration"]
    svg = plots.reliability(calibration["reliability"], calibration["ece"], dict.fromkeys(calibration["ece"], "x"))
    shapes = {number: set(re.findall(rf'<(\w+) class="m{number}"', svg)) for number in range(3)}
    assert shapes == {0: {"circle"}, 1: {"rect"}, 2: {"path"}}


def test_a_threshold_that_keeps_nothing_is_not_marked() -> None:
    selection: dict[str, Any] = EVALUATION["selection"]
    assert "abstains below 0.40" in plots.risk_coverage(selection)
    svg = plots.risk_coverage({**selection, "risk": None, "coverage": 0.0})
    assert inside(svg)
    assert "abstains" not in svg


def test_learning_curves_draw_every_epoch_and_mark_the_kept_one() -> None:
    def row(fold: int | None, stage: str, epochs: int) -> dict[str, Any]:
        scores = [0.3 + 0.02 * n for n in range(epochs)]
        return {"fold": fold, "stage": stage, "loss": scores, "dev_macro_f1": scores, "best_epoch": epochs - 1}

    rows = [row(fold, stage, epochs) for fold in (None, 0) for stage, epochs in (("stage1", 9), ("stage2", 5))]
    svg = plots.learning(rows, {"dev_macro_f1": (0.2, 0.6), "loss": (0.0, 1.0)})
    assert inside(svg)
    lines = re.findall(r'<path class="(series s0|fold)" d="M([^"]+)"', svg)
    assert [(style, len(points.split(" L"))) for style, points in lines] == [("fold", 14), ("series s0", 14)] * 2
    assert len(re.findall("<circle", svg)) == 4
    assert "stage1: best 0.460 at epoch 9 of 9. stage2: best 0.380 at epoch 5 of 5." in svg


def test_runs_of_stage_3_are_lines_of_one_stage() -> None:
    scores = [0.3, 0.4, 0.5]
    run = {"fold": None, "stage": "stage3", "loss": scores, "dev_macro_f1": scores, "best_epoch": 2}
    svg = plots.learning([run | {"seed": seed} for seed in (4, 5, 6)], {"dev_macro_f1": (0.2, 0.6), "loss": (0, 1)})
    assert inside(svg)
    lines = re.findall(r'<path class="fold" d="M([^"]+)"', svg)
    assert [len(points.split(" L")) for points in lines] == [3] * 6
    assert "epoch (stage 3)" in svg
    assert 'class="mark"' not in svg


def test_a_cell_is_shaded_by_its_share_of_the_row() -> None:
    matrix = [[0] * 8 for _ in CLASSES]
    matrix[0][:2], matrix[1][:2] = [9, 1], [3, 3]
    table = plots.confusion(matrix)
    cells = re.findall(r'class="cell([^"]*)" style="--share:(\d+)%"><b>\d+%</b> <i>(\d+)</i>', table)
    assert cells == [(" strong full hit", "90", "9"), ("", "10", "1"), ("", "50", "3"), (" hit", "50", "3")]
    assert re.findall(r'<th scope="(\w+)">', table) == ["col", "col", "row", "row"]


def test_a_count_too_long_for_a_cell_is_told_in_thousands() -> None:
    matrix = [[0] * 8 for _ in CLASSES]
    matrix[0][0], matrix[0][1] = 12_600, 9_999
    assert re.findall(r"<i>(\w+)</i>", plots.confusion(matrix)) == ["13k", "9999", "0", "0"]


def test_many_speakers_are_drawn_small() -> None:
    scores = {f"s{n}": {"uar": n / 200, "gender": "female"} for n in range(200)}
    svg = plots.speakers(scores)
    assert inside(svg)
    assert svg.count('r="2.2"') == 200
    assert '<g class="dense">' in svg


def test_speakers_stand_in_order_of_their_scores() -> None:
    scores = {name: {"uar": uar, "gender": gender} for name, uar, gender in (("b", 0.9, ""), ("a", 0.1, "male"))}
    svg = plots.speakers(scores)
    assert inside(svg)
    assert "lowest 0.10" in svg
    assert "gender not told" in svg
    assert "female" not in svg


def test_an_interval_in_a_cell_is_drawn_between_shared_edges() -> None:
    svg = plots.interval(span(-0.02, 0.0, 0.05), -0.05, 0.05, zero=True)
    assert 'aria-hidden="true"' in svg
    assert 'cx="60.0"' in svg
    assert "H116.0" in svg
    assert "mark" not in plots.interval(span(0.1, 0.2, 0.3), 0.0, 1.0)


def test_equal_intervals_stand_in_the_middle_of_their_cells() -> None:
    """Every system has the same figure without a spread: there is no width to divide by."""
    svg = plots.interval(span(0.5, 0.5, 0.5), 0.5, 0.5)
    assert 'cx="60.0"' in svg
    evaluation = make_evaluation(make_reference())
    shown = [*evaluation["systems"].values(), evaluation["calibration"]["prior_corrected"]]
    for score in shown:
        score["uar"] = span(1.0, 1.0, 1.0)
    assert "nan" not in evaluation_section("a", "set", evaluation).lower().replace("nance", "")
