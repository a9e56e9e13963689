import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.labels import CLASSES
from tests.train.results import make_outputs, make_reference
from train.errors import RunError
from train.predictions import predictions_file, read_predictions, write_predictions
from train.reference import ACTED, Guesses, Judged, Outputs, Reference
from train.transcripts import Confidence

UNKNOWN = np.full((80, 3), np.nan, np.float32)
SYSTEMS = {"soft vote": np.arange(80) % 8, "linear probe, degraded copies too": (np.arange(80) + 3) % 8}


def rows_of(
    path: Path,
    reference: Reference,
    outputs: Outputs,
    word_confidence: Confidence = UNKNOWN,
    folds: Guesses | None = None,
) -> list[dict[str, str]]:
    write_predictions(path, Judged(reference, outputs, SYSTEMS, {}), word_confidence, folds)
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def block(rows: list[dict[str, str]], name: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.array([[float(row[f"{name}_{label}"]) for label in CLASSES] for row in rows])


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("cremad", "predictions/cremad.csv"),
        ("cremad, degraded", "predictions/cremad-degraded.csv"),
        ("MSP-Podcast / test2", "predictions/msp-podcast-test2.csv"),
    ],
)
def test_a_table_is_named_after_its_set(name: str, path: str) -> None:
    assert predictions_file(name) == path


def test_a_table_holds_what_the_soup_said_of_every_clip(tmp_path: Path) -> None:
    reference, outputs = make_reference(), make_outputs(80)
    rows = rows_of(tmp_path / "new" / "a.csv", reference, outputs)
    assert [row["id"] for row in rows] == list(reference.ids)
    assert [row["speaker"] for row in rows] == list(reference.speakers)
    assert [row["gender"] for row in rows] == list(reference.genders)
    assert [CLASSES.index(row["intended"]) for row in rows] == reference.truth.tolist()
    assert [CLASSES.index(row["top"]) for row in rows] == outputs.posterior.argmax(axis=1).tolist()
    np.testing.assert_allclose(block(rows, "p"), outputs.posterior, atol=1e-6)
    np.testing.assert_allclose(block(rows, "prior_corrected"), outputs.prior_corrected, atol=1e-6)
    assert reference.votes is not None
    np.testing.assert_allclose(block(rows, "vote"), reference.votes, atol=1e-6)
    np.testing.assert_allclose([float(row["uncertainty"]) for row in rows], outputs.disagreement, rtol=1e-5)
    abstained = outputs.posterior.max(axis=1) < outputs.abstain_below
    assert [row["abstained"] for row in rows] == ["1" if one else "0" for one in abstained]
    assert 0 < abstained.sum() < 80
    np.testing.assert_allclose([float(row["arousal"]) for row in rows], outputs.attributes[:, 0], rtol=1e-5)
    assert [row["rated_valence"] == "" for row in rows] == np.isnan(reference.attributes[:, 1]).tolist()
    assert "dominance" not in rows[0]


def test_what_is_not_known_is_empty(tmp_path: Path) -> None:
    reference = replace(make_reference(rated=False), truth=np.full(80, -1))
    rows = rows_of(tmp_path / "a.csv", reference, replace(make_outputs(80), trained_attributes=()))
    assert {row["intended"] for row in rows} == {""}
    assert {row[f"vote_{label}"] for row in rows for label in CLASSES} == {""}
    assert "arousal" not in rows[0]


def test_a_table_tells_how_sure_the_recogniser_was_of_each_clip_s_words(tmp_path: Path) -> None:
    known, doubted = [-0.25, 0.125, 1.0], [-1.5, 0.75, 0.0]
    confidence = np.array([known, doubted, *[[np.nan] * 3] * 78], np.float32)
    rows = rows_of(tmp_path / "a.csv", make_reference(), make_outputs(80), confidence)
    names = ("words_log_probability", "words_no_speech", "words_trusted")
    told = [tuple(row[name] for name in names) for row in rows]
    assert told == [("-0.25", "0.125", "1"), ("-1.5", "0.75", "0"), *[("", "", "")] * 78]


def test_a_table_tells_what_every_system_says_of_every_clip(tmp_path: Path) -> None:
    """Behind all other columns but the fold."""
    rows = rows_of(tmp_path / "a.csv", make_reference(), make_outputs(80), folds=np.arange(80) % 4)
    assert list(rows[0])[-4:] == [
        "words_trusted",
        "guess: soft vote",
        "guess: linear probe, degraded copies too",
        "fold",
    ]
    for system, guesses in SYSTEMS.items():
        assert [row[f"guess: {system}"] for row in rows] == [CLASSES[guess] for guess in guesses]
    assert [row["fold"] for row in rows] == [str(row % 4) for row in range(80)]


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    reference, outputs = make_reference(), make_outputs(80)
    reference = replace(reference, truth=np.where(np.arange(80) < 5, -1, reference.truth))
    rows_of(tmp_path / "a.csv", reference, outputs)
    table = read_predictions(tmp_path / "a.csv")
    np.testing.assert_allclose(table.block("p"), outputs.posterior, atol=1e-6)
    assert table.systems.keys() == SYSTEMS.keys()
    for system, guesses in SYSTEMS.items():
        np.testing.assert_array_equal(table.systems[system], guesses)
    found = table.reference(ACTED)
    assert (found.ids, found.speakers, found.genders) == (reference.ids, reference.speakers, reference.genders)
    np.testing.assert_array_equal(found.truth, reference.truth)
    assert found.votes is not None
    assert reference.votes is not None
    np.testing.assert_allclose(found.votes, reference.votes, atol=1e-6)
    rows_of(tmp_path / "b.csv", make_reference(rated=False), outputs)
    assert read_predictions(tmp_path / "b.csv").reference(ACTED).votes is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no table of predictions"),
        ("id,top\na,angry,sad\n", "is no table of predictions"),
        ("id,intended\na,angry\n", "'top' is not among its columns"),
        ("id,top\na,cross\n", "names the classes cross; the classes are angry, sad"),
    ],
)
def test_what_is_no_table_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=message):
        read_predictions(tmp_path / "a.csv").classes("top")


def test_a_posterior_that_is_no_number_is_refused(tmp_path: Path) -> None:
    header = ",".join(f"p_{name}" for name in CLASSES)
    (tmp_path / "a.csv").write_text(f"{header}\n{'0.1,' * 7}much\n", encoding="utf-8")
    with pytest.raises(RunError, match="holds no numbers for p: .*'much'"):
        read_predictions(tmp_path / "a.csv").block("p")
