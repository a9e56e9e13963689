"""Documents, and the page that is drawn of stored ones (short runs of each benchmark)."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import document, report
from bench.document import Document, DocumentError, made, read, write
from bench.plots import Series, over, side_by_side, trend

STORED = sorted((Path(__file__).parent / "documents").glob("*.json"))
STREAMS = next(path for path in STORED if path.stem == "streams")


def span(value: float, room: float = 0.0) -> dict[str, float]:
    return {"value": value, "low": value - room, "high": value + room}


def drawn(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def assert_inside(plot: ElementTree.Element) -> None:
    """Every marker, line and word begins on the canvas."""
    _, _, wide, high = map(float, plot.attrib["viewBox"].split())
    spots = [(part.get("cx") or part.get("x"), part.get("cy") or part.get("y")) for part in plot.iter()]
    spots += [(part.get(f"x{n}"), part.get(f"y{n}")) for part in plot.iter() for n in (1, 2)]
    paths = [part.attrib["d"] for part in plot.iter("path")]
    spots += [(x, y) for path in paths for x, y in re.findall(r"[ML ]([-\d.]+),([-\d.]+)", path.split(" l")[0])]
    placed = [(float(x), float(y)) for x, y in spots if x is not None and y is not None]
    assert placed
    assert all(0 <= x <= wide and 0 <= y <= high for x, y in placed)


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"streams": 2, "wait_ms": {"p95": span(120.5, 3)}, "failed": []}]
    wrote = made("streams", rows, note="quiet machine")
    write(tmp_path / "found.json", wrote)
    found = read(tmp_path / "found.json")
    assert found == wrote
    assert found.rows == rows
    assert found.facts == {"note": "quiet machine"}
    assert found.cores >= 1
    assert {"python", "numpy", "onnxruntime"} <= set(found.versions)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found.date)
    assert found.command.startswith("python -m bench.streams")
    write(None, wrote)
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "no document of format"),
        ('{"format": 99}', "no document of format"),
        (f'{{"format": {document.FORMAT}, "program": "streams"}}', "no document of a benchmark"),
    ],
)
def test_what_is_no_document_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "found.json"
    path.write_text(text)
    with pytest.raises(DocumentError, match=problem):
        read(path)
    with pytest.raises(DocumentError, match="cannot be read"):
        read(tmp_path / "nothing.json")


def test_the_page_of_stored_documents(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert [path.stem for path in STORED] == ["chaos", "impairment", "soak", "streams"]
    assert report.main([*map(str, STORED), "--out", str(out)]) == 0
    page = out.read_text()
    assert re.findall(r"<h2>(\w+)</h2>", page) == ["Streams", "Impairment", "Soak", "Chaos", "Runs"]
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", page), "nothing is loaded"
    for stored in STORED:
        assert read(stored).command in page
    plots = drawn(page)
    found = read(STREAMS)
    doors = {row["door"] for row in found.rows}
    assert len(plots) == 4 * len(doors) + 1 + 1
    for plot in plots:
        assert_inside(plot)
    row = found.rows[0]
    cells = f'<th scope="row">{row["server"]}, {row["door"]}</th><td>{row["streams"]}</td><td>{row["utterances"]}</td>'
    assert cells in page


def test_what_has_no_plots_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "other.json", replace(read(STREAMS), program="weather"))
    assert report.main([str(tmp_path / "other.json"), "--out", str(tmp_path / "page.html")]) == 1
    assert "no plots of weather" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_servers_are_series_and_runs_of_one_server_stay_apart() -> None:
    found = read(STREAMS)
    servers = list(dict.fromkeys(row["server"] for row in found.rows if row["door"] == "native"))
    once = report.series_of([found], "native", lambda row: row["wait_ms"].get("p95"))
    assert [one.name for one in once] == servers
    twice = report.series_of([found, found], "native", lambda row: row["wait_ms"].get("p95"))
    assert len(twice) == 2 * len(servers)
    assert all(one.name.startswith(tuple(servers)) and found.date[:10] in one.name for one in twice)


def test_memory_grows_by_what_a_stream_more_adds() -> None:
    rows = [{"server": "daemon", "door": "native", "streams": n, "peak_mb": 400 + 3.0 * n} for n in (1, 2, 5)]
    some = Document("streams", "", "2026-01-01T00:00:00+00:00", {}, 2, rows, {})
    assert report.growing([some], "native") == "daemon: 3.0 MiB for each stream more."
    assert report.growing([replace(some, rows=rows[:1])], "native") == "", "one point has no slope"


def test_words_of_a_document_are_no_markup() -> None:
    strange = Document("chaos", "python <b>", "", {}, 1, [{"trouble": "<i>cut", "count": 1}], _chaos_facts())
    page = report.page([strange])
    assert "<b>" not in page.partition("</style>")[2]
    assert "&lt;i&gt;cut" in page


def _chaos_facts() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(next(path for path in STORED if path.stem == "chaos").read_text())["facts"]
    return facts


places = st.dictionaries(st.integers(1, 200).map(float), st.floats(0, 1e5).map(lambda v: span(v, v / 3)), min_size=1)


@given(st.lists(places, min_size=1, max_size=6), st.none() | st.floats(1, 1e4))
def test_any_series_lie_on_their_canvas(points: list[dict[float, dict[str, float]]], most: float | None) -> None:
    series = [Series(f"server {number}", one) for number, one in enumerate(points)]
    (plot,) = drawn(over(series, "streams", "ms", 500.0 if most is None else None, most))
    assert_inside(plot)
    assert len(plot.findall(".//*[@class='label']")) == len(series)


@given(places)
def test_any_values_lie_on_their_canvas(points: dict[float, dict[str, float]]) -> None:
    (plot,) = drawn(side_by_side({f"{place:g}": one for place, one in points.items()}, "ms"))
    assert_inside(plot)
    assert len(plot.findall(".//circle")) == len(points)


@given(st.lists(st.floats(1, 1e5), min_size=3, max_size=50), st.floats(-1e4, 1e4))
def test_any_samples_lie_on_their_canvas(values: list[float], slope: float) -> None:
    hours = [index / 240 for index in range(len(values))]
    begin = hours[len(hours) // 4]
    middle = sorted(values)[len(values) // 2]
    (plot,) = drawn(trend(hours, values, (middle, slope), begin, "MiB"))
    assert_inside(plot)
    assert len(plot.findall(".//circle")) == len(values)
