"""Two runs beside each other: figures that can be counted by hand, and runs that cannot be compared."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from train.commands import app
from train.compare import compare_runs
from train.errors import RunError

HEAD = "id,speaker,intended,top\n"
CLIPS = [(f"{speaker}-{take}", speaker, ("angry", "sad")[take % 2]) for speaker in "abcdef" for take in range(4)]


def run(folder: Path, wrong: int, *, table: str = "cremad", clips: list[tuple[str, str, str]] | None = None) -> Path:
    """A run that takes the first `wrong` clips of every speaker for happy."""
    path = folder / "predictions" / f"{table}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        f"{clip},{speaker},{truth},{'happy' if int(clip[-1]) < wrong else truth or 'sad'}"
        for clip, speaker, truth in clips or CLIPS
    ]
    path.write_text(HEAD + "\n".join(rows) + "\n")
    return folder


def test_the_better_run_is_told_by_how_much(tmp_path: Path) -> None:
    first, second = run(tmp_path / "one", 2), run(tmp_path / "two", 1)
    uar, f1 = compare_runs(first, second)
    assert (uar.metric, f1.metric) == ("UAR", "macro-F1")
    assert (uar.test, uar.clips, uar.speakers) == ("cremad", 24, 6)
    assert (uar.first.value, uar.second.value, uar.gain.value) == (0.5, 0.75, 0.25)
    assert uar.gain.low == uar.gain.high == 0.25, "every speaker gains the same"
    assert compare_runs(second, first)[0].gain.value == -0.25


def test_a_run_is_not_told_from_itself(tmp_path: Path) -> None:
    (uar, _) = compare_runs(run(tmp_path / "one", 1), run(tmp_path / "two", 1))
    assert (uar.gain.low, uar.gain.value, uar.gain.high) == (0, 0, 0)


def test_clips_without_a_truth_do_not_count(tmp_path: Path) -> None:
    clips = [*CLIPS, ("a-8", "a", "")]
    (uar, _) = compare_runs(run(tmp_path / "one", 1, clips=clips), run(tmp_path / "two", 0, clips=clips))
    assert uar.clips == 24


def test_only_test_sets_of_both_are_compared(tmp_path: Path) -> None:
    first, second = run(tmp_path / "one", 1), run(tmp_path / "two", 1)
    run(first, 1, table="ravdess")
    assert {row.test for row in compare_runs(first, second)} == {"cremad"}
    with pytest.raises(RunError, match="share no test set: the first has ravdess, the second cremad"):
        compare_runs(run(tmp_path / "three", 1, table="ravdess"), second)


def test_runs_of_other_clips_are_refused(tmp_path: Path) -> None:
    first = run(tmp_path / "one", 1)
    with pytest.raises(RunError, match=r"other clips \(1 are in one of them, such as f-3\)"):
        compare_runs(first, run(tmp_path / "two", 1, clips=CLIPS[:-1]))
    changed = [*CLIPS[:-1], ("f-3", "f", "angry")]
    with pytest.raises(RunError, match="another truth for 1 clips, such as f-3"):
        compare_runs(first, run(tmp_path / "three", 1, clips=changed))


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    first = run(tmp_path / "one", 1)
    with pytest.raises(RunError, match="holds no predictions"):
        compare_runs(first, tmp_path)
    other = run(tmp_path / "two", 1)
    (other / "predictions" / "cremad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RunError, match="no table of predictions: 'id'"):
        compare_runs(first, other)
    (other / "predictions" / "cremad.csv").write_text(HEAD + "a-0,a,angry,cross\n")
    with pytest.raises(RunError, match="names the classes cross"):
        compare_runs(first, other)


def test_the_command_says_it_in_words(tmp_path: Path) -> None:
    first, second = run(tmp_path / "one", 2), run(tmp_path / "two", 1)
    shown = CliRunner().invoke(app, ["compare", str(first), str(second)])
    assert shown.exit_code == 0
    assert "cremad, UAR: 24 clips of 6 speakers" in shown.stdout
    assert "second 0.750 [0.750, 0.750]  difference +0.250 [+0.250, +0.250]: better" in shown.stdout
    refused = CliRunner().invoke(app, ["compare", str(first), str(tmp_path)])
    assert refused.exit_code == 2
