import json
from dataclasses import replace

import numpy as np
import pytest

from model.labels import CLASS_INDEX, CLASSES
from tests.train.synthetic import TRAINED, make_examples
from train.evaluate import compare, majority_vote, pooled, probe_guesses, score
from train.metrics import accuracy, unweighted_average_recall
from train.report import estimate, model_card, write_report

ANGRY, SAD, HAPPY = (CLASS_INDEX[name] for name in ("angry", "sad", "happy"))


def posterior_of(**mass: float) -> np.ndarray:
    values = np.zeros(8)
    for name, probability in mass.items():
        values[CLASS_INDEX[name]] = probability
    return values


def test_a_majority_beats_a_confident_member() -> None:
    members = [posterior_of(angry=0.4, sad=0.35, happy=0.25)] * 2 + [posterior_of(sad=1.0)]
    assert majority_vote(np.stack(members)[None]).tolist() == [ANGRY]


def test_a_tie_goes_to_the_higher_mean_and_not_to_the_first_column() -> None:
    members = [posterior_of(angry=0.6, happy=0.4), posterior_of(angry=0.1, happy=0.9)]
    assert majority_vote(np.stack(members)[None]).tolist() == [HAPPY]


def test_scores_against_votes_leave_out_clips_without_consensus() -> None:
    test = make_examples(("angry", "sad") * 10)
    guesses = test.intended.copy()
    voted = np.array([-1, SAD, ANGRY, ANGRY] * 5)
    found = score(guesses, test, voted)
    assert found.uar.value == found.accuracy.value == 1.0
    assert found.voted_uar is not None
    assert found.voted_uar.value == unweighted_average_recall(voted[voted >= 0], guesses[voted >= 0])
    assert found.voted_uar.value == pytest.approx(0.75)
    assert score(guesses, test, np.full(20, -1)).voted_uar is None
    assert score(guesses, test, None).voted_uar is None


def test_pooling_takes_mean_and_deviation_over_time() -> None:
    examples = make_examples(("angry", "sad"))
    frames = {"prosody": [np.array([[1, 2], [3, 6]], np.float16), np.array([[5, 5]], np.float16)]}
    rows = pooled(replace(examples, frames=frames), ["prosody"])
    assert rows.tolist() == [[2, 4, 1, 2], [5, 5, 0, 0]]


def test_the_probe_learns_from_frames_and_never_reads_words() -> None:
    train, test = make_examples(TRAINED * 20), make_examples(TRAINED * 10, seed=1)
    guesses = probe_guesses(train, test)
    assert accuracy(test.intended, guesses) > 0.8
    silent = {**test.frames, "text": [rows * 0 for rows in test.frames["text"]]}
    np.testing.assert_array_equal(probe_guesses(train, replace(test, frames=silent)), guesses)


def test_a_comparison_is_plain_data_and_becomes_a_report(tmp_path_factory: pytest.TempPathFactory) -> None:
    test = make_examples(TRAINED * 5)
    right, wrong = test.intended, np.full(20, ANGRY)
    posterior, votes = np.eye(8)[right], test.targets
    evaluation = compare(test, right, {"best": right, "<worse>": wrong}, "best", posterior, votes)
    assert json.loads(json.dumps(evaluation)) == evaluation
    assert evaluation["uar_gain_of_soup"]["<worse>"]["value"] == pytest.approx(0.75)
    assert evaluation["uar_gain_of_soup"]["<worse>"]["low"] > 0
    assert np.trace(evaluation["confusion"]) == evaluation["clips"] == 20
    assert set(evaluation["class_f1"]) == set(TRAINED)
    results = {
        "name": "test",
        "summary": "",
        "data": ["made up"],
        "evaluations": {"here": evaluation},
        "words": [{"text": "", "top": CLASSES[0], "shown": "angry 1.00"}],
        "words_note": "",
        "limits": [],
    }
    page = write_report(tmp_path_factory.mktemp("report"), results).read_text()
    assert "&lt;worse&gt;" in page
    assert "<worse>" not in page
    card = model_card(results)
    assert estimate(evaluation["uar_gain_of_soup"]["<worse>"]) in card
    assert estimate(None) == "-"
