import json
from dataclasses import replace

import numpy as np
import pytest

from model.labels import CLASS_INDEX
from tests.train.results import SOUP, make_evaluation, make_outputs, make_reference, random_posteriors
from tests.train.synthetic import TRAINED, make_examples
from train.calibration import calibration_error
from train.evaluate import compare, majority_vote, score
from train.metrics import concordance, macro_f1, soft_cross_entropy, unweighted_average_recall
from train.phrases import alike
from train.reference import ACTED, VOTED, reference_of

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
    heard = np.array(
        [posterior_of(angry=0.5, sad=0.5), posterior_of(sad=1), posterior_of(angry=1), posterior_of(angry=1)]
    )
    reference = reference_of(test, np.tile(heard, (5, 1)), [""] * 20)
    assert reference.kind == ACTED
    assert reference.voted is not None
    assert reference.voted.tolist() == [-1, SAD, ANGRY, ANGRY] * 5
    found = score(test.intended, reference)
    assert found.uar.value == found.accuracy.value == found.micro_f1.value == 1.0
    assert found.voted_uar is not None
    assert found.voted_uar.value == pytest.approx(0.75)  # anger 1 of 2, sadness all


def test_votes_that_repeat_the_acted_emotion_are_no_second_truth() -> None:
    test = make_examples(TRAINED * 5)
    repeated = reference_of(test, np.eye(8)[test.intended], [""] * 20)
    assert repeated.votes is None
    assert repeated.voted is None
    assert score(test.intended, repeated).voted_uar is None
    one_other = np.eye(8)[test.intended]
    one_other[3] = posterior_of(fear=1)
    assert reference_of(test, one_other, [""] * 20).votes is not None, "one rater who hears something else is a rater"
    assert reference_of(test, test.targets, [""] * 20).votes is not None


def test_where_nobody_acted_the_dominant_vote_is_the_truth() -> None:
    labels = ("angry", "sad", "happy", None, "neutral") * 4
    test = make_examples(labels)
    heard = replace(test, intended=np.full(20, -1))
    reference = reference_of(heard, heard.targets, [""] * 20)
    assert reference.kind == VOTED
    assert reference.truth.tolist() == [-1 if name is None else CLASS_INDEX[name] for name in labels]
    assert reference.voted is None
    evaluation = compare(reference, {SOUP: test.dominant}, SOUP, make_outputs(20))
    assert evaluation["reference"] == VOTED
    assert (evaluation["clips"], evaluation["without_reference"]) == (20, 4)
    assert np.sum(evaluation["confusion"]) == np.trace(evaluation["confusion"]) == 16
    assert evaluation["systems"][SOUP]["accuracy"]["value"] == 1.0
    assert evaluation["soft_cross_entropy"] is not None


def test_a_comparison_is_plain_data() -> None:
    reference = make_reference(20)
    right, wrong = reference.truth, np.full(20, ANGRY)
    evaluation = compare(reference, {"best": right, "<worse>": wrong}, "best", make_outputs(20, truth=right))
    assert json.loads(json.dumps(evaluation, allow_nan=False)) == evaluation
    assert evaluation["uar_gain_of_soup"]["<worse>"]["value"] == pytest.approx(0.75)
    assert evaluation["uar_gain_of_soup"]["<worse>"]["low"] > 0
    assert evaluation["macro_f1_gain_of_soup"]["<worse>"]["value"] == pytest.approx(1 - macro_f1(right, wrong))
    assert np.trace(evaluation["confusion"]) == evaluation["clips"] == 20
    assert set(evaluation["class_f1"]) == set(TRAINED)
    assert set(evaluation["by_speaker"]) == set(reference.speakers)


def test_who_hears_the_clips_otherwise_is_compared_with_a_soup_that_does() -> None:
    """Else a gain would be one of hearing whole calls, too."""
    reference = make_reference(20)
    right, wrong = reference.truth, np.full(20, ANGRY)
    systems = {"source, alone": wrong, "source": wrong, "soup, alone": wrong, "best": right}
    evaluation = compare(reference, systems, "best", make_outputs(20, truth=right), {"source, alone": "soup, alone"})
    gains = evaluation["uar_gain_of_soup"]
    assert {name: gain["value"] for name, gain in gains.items()} == pytest.approx(
        {"source, alone": 0.0, "source": 0.75, "soup, alone": 0.75}
    )
    assert evaluation["macro_f1_gain_of_soup"]["source, alone"]["value"] == 0.0
    assert evaluation["compared_alike"] == {"source, alone": "soup, alone"}
    assert "the soup hears them so too" in alike(evaluation)
    assert alike(make_evaluation(reference)) == ""


def test_without_raters_nothing_is_said_about_votes() -> None:
    evaluation = make_evaluation(make_reference(rated=False))
    for name in ("soft_cross_entropy", "jensen_shannon"):
        assert evaluation[name] is None
    assert evaluation["calibration"]["vote_loss"] is None
    assert all(scores["voted_uar"] is None for scores in evaluation["systems"].values())


def test_calibration_is_told_before_and_after() -> None:
    reference, truth = make_reference(), make_reference().truth
    outputs = make_outputs(80, truth=truth)
    found = make_evaluation(reference)["calibration"]
    kinds = {
        "before": outputs.uncalibrated,
        "after": outputs.posterior,
        "prior_corrected": outputs.prior_corrected,
    }
    assert found["ece"] == {name: calibration_error(truth, posterior) for name, posterior in kinds.items()}
    assert reference.votes is not None
    for name, posterior in kinds.items():
        assert found["vote_loss"][name] == pytest.approx(soft_cross_entropy(reference.votes, posterior))
    change = found["vote_loss"]["change"]["after"]
    assert change["low"] <= change["value"] <= change["high"] < 0, "sharpened posteriors explain the votes less"
    assert change["value"] == pytest.approx(found["vote_loss"]["after"] - found["vote_loss"]["before"], rel=1e-5)
    guesses = outputs.prior_corrected.argmax(axis=1)
    assert found["prior_corrected"]["uar"]["value"] == unweighted_average_recall(truth, guesses)


def test_abstaining_is_told_at_the_threshold() -> None:
    truth, outputs = make_reference().truth, make_outputs(80, truth=make_reference().truth)
    found = make_evaluation(make_reference())["selection"]
    kept = outputs.posterior.max(axis=1) >= outputs.abstain_below
    wrong = outputs.posterior.argmax(axis=1) != truth
    assert 0 < kept.sum() < 80
    assert found["coverage"] == kept.mean()
    assert found["risk"] == wrong[kept].mean() < found["risk_without_abstaining"] < found["risk_of_abstained"]
    for order in found["orders"].values():
        assert order["coverage"][-1] == 1.0
        assert order["risk"][-1] == pytest.approx(wrong.mean())
        assert order["error_auroc"] > 0.5


def test_a_threshold_that_keeps_nothing_has_no_risk() -> None:
    reference = make_reference()
    outputs = replace(make_outputs(80), abstain_below=1.1)
    found = compare(reference, {SOUP: reference.truth}, SOUP, outputs)["selection"]
    assert (found["coverage"], found["risk"]) == (0.0, None)


def test_attributes_count_where_they_are_rated_and_trained() -> None:
    reference, outputs = make_reference(), make_outputs(80)
    found = make_evaluation(reference)["attributes"]
    assert {name: part["clips"] for name, part in found.items()} == {"arousal": 80, "valence": 40}
    expected = concordance(reference.attributes[:, 1], outputs.attributes[:, 1])
    assert found["valence"]["ccc"]["value"] == pytest.approx(expected)
    untrained = compare(reference, {SOUP: reference.truth}, SOUP, replace(outputs, trained_attributes=()))
    assert untrained["attributes"] == {}


def test_the_gap_is_between_the_genders_that_the_corpus_tells() -> None:
    reference = make_reference()
    guesses = random_posteriors(80, 3, truth=reference.truth).argmax(axis=1)
    female = np.flatnonzero(np.array(reference.genders) == "female")
    guesses[female] = reference.truth[female]
    found = compare(reference, {SOUP: guesses}, SOUP, make_outputs(80))["genders"]
    assert (found["female"]["speakers"], found["male"]["speakers"]) == (4, 4)
    assert found["female"]["uar"]["value"] == 1.0
    assert found["gap"]["value"] == pytest.approx(1.0 - found["male"]["uar"]["value"])
    assert 0 < found["gap"]["low"] <= found["gap"]["high"]
    for genders in (("",), ("female",), ("", "male")):
        assert make_evaluation(make_reference(genders=genders))["genders"] is None
