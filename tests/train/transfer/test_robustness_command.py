"""`medusa-train robustness` on a finished run, whole."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.train.transfer.conftest import World
from train.cli import app
from train.results import SOUP
from train.robustness import CONDITIONS
from train.robustness_report import CLEAN


@pytest.fixture(scope="module")
def measured(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("robustness")
    given = ["--run", str(world.run), "--data", str(world.data), "--out", str(out), "--cache", str(world.cache)]
    found = CliRunner().invoke(app, ["robustness", *given])
    assert found.exit_code == 0, found.output
    return out


def test_the_recordings_score_what_the_runs_own_report_says(world: World, measured: Path) -> None:
    found = json.loads((measured / "robustness.json").read_text())
    own = json.loads((world.run / "report.json").read_text())["evaluations"]["cremad (unseen speakers)"]
    ((run, row),) = found["rows"][CLEAN].items()
    assert row["uar"] == own["systems"][SOUP]["uar"]
    assert found["runs"] == {run: "0 degraded copies of a clip"}
    assert found["rows"].keys() == {CLEAN} | CONDITIONS.keys()
    assert found["clips"] == own["clips"] - own["without_reference"]
    assert (measured / "robustness.html").read_text().count("<tr>") >= len(CONDITIONS)


def test_words_are_those_that_are_left_on_the_bad_line(world: World, measured: Path) -> None:
    kept = {path.name.partition("-trusted-words")[2] for path in world.cache.glob("*-trusted-words*")}
    assert len(kept) == 1 + sum(not condition.spoils_words for condition in CONDITIONS.values())


def test_a_condition_is_extracted_once(world: World, measured: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in world.cache.rglob("*") if path.is_file()}
    given = ["--run", str(world.run), "--data", str(world.data), "--out", str(tmp_path), "--cache", str(world.cache)]
    assert CliRunner().invoke(app, ["robustness", *given]).exit_code == 0
    after = {path: path.stat().st_mtime_ns for path in world.cache.rglob("*") if path.is_file()}
    assert after == before
    assert json.loads((tmp_path / "robustness.json").read_text()) == json.loads(
        (measured / "robustness.json").read_text()
    )
