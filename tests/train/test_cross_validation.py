"""The training speakers are judged by members that never heard them, and by meta-classifiers that never saw their clips."""

from dataclasses import replace

import numpy as np
import pytest

from model.network.deepser import DeepSER
from tests.train.synthetic import TRAINED, make_examples, make_member, make_recipe, make_training_set
from train.cross_validation import cross_validate
from train.dataset import Examples
from train.prepare import TRAINING, Prepared
from train.reference import Outputs
from train.results import SOUP
from train.stages.members import ALL_SPEAKERS, TrainingSet

FOLDS = 3
RECIPE = make_recipe(meta={"folds": FOLDS, "epochs": 3, "seeds": [1, 2], "draws": 2})
CLIPS = make_examples(TRAINED * 12)
NUMBERS = np.arange(len(CLIPS)) // 4 % FOLDS


def training_of(clips: Examples) -> TrainingSet:
    return replace(make_training_set(clips), folds=NUMBERS)


def members(**other: int) -> dict[str, dict[int, DeepSER]]:
    seeds = {"all": 1, "0": 2, "1": 3, "2": 4} | {name.removeprefix("fold"): seed for name, seed in other.items()}
    return {"tiny": {ALL_SPEAKERS if name == "all" else int(name): make_member(seed=s) for name, s in seeds.items()}}


def silent(what: str, done: int, total: int) -> None:
    pass


def outputs(clips: Examples, trained: dict[str, dict[int, DeepSER]]) -> Outputs:
    return cross_validate(RECIPE, prepared(training_of(clips)), trained, silent).outputs


def prepared(training: TrainingSet) -> Prepared:
    clips = training.train
    return Prepared(
        training,
        test={},
        otherwise={},
        alone=(training.copies, training.dev),
        adaptation=None,
        votes={TRAINING: clips.targets},
        genders={TRAINING: ("",) * len(clips)},
        word_confidence={TRAINING: np.full((len(clips), 3), np.nan, np.float32)},
        dropped={},
        notes={},
    )


@pytest.fixture(scope="module")
def found() -> Outputs:
    return outputs(CLIPS, members())


@pytest.mark.parametrize("fold", range(FOLDS))
def test_stage_3_never_learns_from_the_labels_of_the_fold_that_it_judges(found: Outputs, fold: int) -> None:
    mine = np.flatnonzero(NUMBERS == fold)
    targets = CLIPS.targets.copy()
    targets[mine] = np.roll(targets[mine], 1, axis=0)
    other = outputs(replace(CLIPS, targets=targets, intended=targets.argmax(axis=1)), members())
    np.testing.assert_array_equal(other.posterior[mine], found.posterior[mine])
    np.testing.assert_array_equal(other.members[mine], found.members[mine])
    assert not np.allclose(other.posterior[NUMBERS != fold], found.posterior[NUMBERS != fold]), "others learn from it"


def test_a_member_judges_the_fold_that_it_never_heard_and_no_other(found: Outputs) -> None:
    other = outputs(CLIPS, members(fold1=77))
    changed = np.flatnonzero((other.members != found.members).any(axis=(1, 2)))
    np.testing.assert_array_equal(changed, np.flatnonzero(NUMBERS == 1))


def test_the_members_that_ship_judge_nobody(found: Outputs) -> None:
    """They are there for the development speakers: the temperature moves, the classes do not."""
    other = outputs(CLIPS, members(foldall=77))
    np.testing.assert_array_equal(other.members, found.members)
    np.testing.assert_array_equal(other.uncalibrated, found.uncalibrated)


def test_every_training_clip_is_judged_once_by_every_system() -> None:
    judged = cross_validate(RECIPE, prepared(training_of(CLIPS)), members(), silent)
    outputs = judged.outputs
    assert judged.reference.ids == CLIPS.ids
    assert np.isfinite(outputs.posterior).all()
    assert np.isfinite(outputs.prior_corrected).all()
    np.testing.assert_allclose(outputs.posterior.sum(axis=1), 1.0, atol=1e-5)
    wanted = {"linear probe", "member tiny", "majority vote", "soft vote", "single meta-classifier", SOUP}
    assert judged.evaluation["systems"].keys() == judged.systems.keys() == wanted
    assert {len(guesses) for guesses in judged.systems.values()} == {len(CLIPS)}
    assert judged.evaluation["clips"] == len(CLIPS)
