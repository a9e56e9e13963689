"""Ensembles whose meta-classifiers are given: what joins the members, and the fallbacks that come with it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.labels import CLASSES
from model.network.checkpoint import TrainedFallback
from model.network.deepser import DeepSER
from model.network.metaclassifier import MetaClassifier
from model.spec import Fallback
from tests.train.synthetic import TRAINED, make_examples, make_member, make_training_set
from tests.train.test_fallbacks import NAMES, recipe_of
from tests.train.test_stacking import prepared
from train.stacking import calibrated, member_outputs
from train.stages.members import TrainingSet
from train.stages.meta import HeldOut, columns_of, meta_posterior
from train.transfer.joining import joined, soft_vote


@pytest.fixture(scope="module")
def training() -> TrainingSet:
    return make_training_set(make_examples(TRAINED * 6))


def members() -> tuple[DeepSER, ...]:
    found = tuple(make_member(seed=number) for number in (1, 2, 3))
    for member, name in zip(found, NAMES, strict=True):
        member.spec = replace(member.spec, name=name)
    return found


def given(*names: str, seed: int) -> TrainedFallback:
    torch.manual_seed(seed)
    return TrainedFallback(Fallback(names, 9.0, 0.9), MetaClassifier(len(names)).eval())


def test_given_fallbacks_are_carried_and_calibrated_on_their_own(training: TrainingSet) -> None:
    recipe, networks = recipe_of(*NAMES, fallbacks=(("one", "three"), ("three",))), members()
    fallbacks = (given("one", "three", seed=1), given("three", seed=2))
    found = joined(recipe, prepared(training), networks, soft_vote(3), (), fallbacks)
    outputs = member_outputs(recipe, networks, training.dev, TRAINED)
    assert [fallback.spec.members for fallback in found.fallbacks] == [("one", "three"), ("three",)]
    for carried, source in zip(found.fallbacks, fallbacks, strict=True):
        assert carried.meta is source.meta, "what the source learned"
        columns = columns_of(source.spec.members, NAMES)
        expected = calibrated(source.meta, HeldOut(outputs[:, columns], training.dev), TRAINED)
        assert (carried.spec.temperature, carried.spec.abstain_below) == (expected.temperature, expected.abstain_below)
        assert carried.spec.temperature != source.spec.temperature, "measured on these clips"
    assert joined(recipe, prepared(training), networks, soft_vote(3), ()).fallbacks == ()


def test_a_soft_vote_guesses_the_mean_s_class(training: TrainingSet) -> None:
    recipe, networks = recipe_of(*NAMES), members()
    outputs = member_outputs(recipe, networks, training.dev, TRAINED)
    bias = torch.zeros(len(CLASSES))
    found = meta_posterior(soft_vote(3), outputs, bias, 1.0).argmax(axis=1)
    mean = outputs.reshape(len(outputs), 3, -1)[:, :, : len(CLASSES)].mean(dim=1).numpy()
    np.testing.assert_array_equal(found, mean.argmax(axis=1))
