"""Stages 3 and 4 and calibration on fewer members: what a server falls back to when it has not time for all."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from model.network.deepser import DeepSER
from model.network.metaclassifier import WIDTH, MetaClassifier
from tests.train.synthetic import TRAINED, make_examples, make_member, make_recipe, make_training_set
from tests.train.test_stacking import prepared
from train.config import Recipe
from train.stacking import Stacked, stack
from train.stages.members import ALL_SPEAKERS, TrainingSet
from train.stages.meta import columns_of
from train.stored_stack import load_stacked, save_stacked, stack_key

NAMES = ("one", "two", "three")
ORDER = (("one", "three"), ("three",))


def recipe_of(*names: str, fallbacks: tuple[tuple[str, ...], ...] = (), soup: str = "uniform") -> Recipe:
    members = [{"name": name, "modalities": ["prosody", "text"], "seed": NAMES.index(name)} for name in names]
    meta = {"folds": 2, "epochs": 3, "seeds": [1, 2, 3], "soup": soup}
    return make_recipe(members=members, meta=meta, fallbacks=[list(each) for each in fallbacks])


def networks(*names: str) -> dict[str, dict[int, DeepSER]]:
    return {
        name: {fold: make_member(seed=10 * NAMES.index(name) + fold + 2) for fold in (ALL_SPEAKERS, 0, 1)}
        for name in names
    }


@pytest.fixture(scope="module")
def training() -> TrainingSet:
    return make_training_set(make_examples((*TRAINED, "angry", "angry", None) * 6))


@pytest.fixture(scope="module")
def stacked(training: TrainingSet) -> Stacked:
    return stack(recipe_of(*NAMES, fallbacks=ORDER), prepared(training), networks(*NAMES))


def same(one: MetaClassifier, other: MetaClassifier) -> bool:
    return all(torch.equal(values, other.state_dict()[name]) for name, values in one.state_dict().items())


def test_fallbacks_change_nothing_about_the_whole(training: TrainingSet, stacked: Stacked) -> None:
    plain = stack(recipe_of(*NAMES), prepared(training), networks(*NAMES))
    assert plain.fallbacks == ()
    assert same(plain.soup, stacked.soup)
    assert (plain.temperature, plain.abstain_below) == (stacked.temperature, stacked.abstain_below)


@pytest.mark.parametrize("soup", ["uniform", "greedy"])
def test_a_fallback_is_the_ensemble_that_these_members_would_have_made(training: TrainingSet, soup: str) -> None:
    """Meta-classifier, temperature and threshold: those of a recipe that never had the others."""
    found = stack(recipe_of(*NAMES, fallbacks=ORDER, soup=soup), prepared(training), networks(*NAMES))
    assert len(found.fallbacks) == 2
    for fallback, names in zip(found.fallbacks, ORDER, strict=True):
        alone = stack(recipe_of(*names, soup=soup), prepared(training), networks(*names))
        assert fallback.spec.members == names
        assert same(fallback.meta, alone.soup)
        assert (fallback.spec.temperature, fallback.spec.abstain_below) == (alone.temperature, alone.abstain_below)
        assert fallback.spec.abstain_below != found.abstain_below


def test_columns_are_those_of_the_members() -> None:
    columns = columns_of(("three", "one"), NAMES)
    assert columns == [*range(WIDTH), *range(2 * WIDTH, 3 * WIDTH)]


def test_they_are_kept_and_named_by_the_key(stacked: Stacked, tmp_path: Path) -> None:
    plain, ordered = recipe_of(*NAMES), recipe_of(*NAMES, fallbacks=ORDER)
    keys = {stack_key(each, ["k"]) for each in (plain, ordered, recipe_of(*NAMES, fallbacks=ORDER[:1]))}
    assert len(keys) == 3, "another order is trained anew"
    save_stacked(tmp_path, "key", stacked)
    found = load_stacked(tmp_path, "key", stacked.members)
    assert found is not None
    assert [each.spec for each in found.fallbacks] == [each.spec for each in stacked.fallbacks]
    assert all(same(a.meta, b.meta) for a, b in zip(found.fallbacks, stacked.fallbacks, strict=True))
    assert same(found.soup, stacked.soup)
    save_stacked(tmp_path, "key", replace(stacked, fallbacks=()))
    again = load_stacked(tmp_path, "key", stacked.members)
    assert again is not None
    assert again.fallbacks == ()
    np.testing.assert_array_equal(again.prior_ratio, stacked.prior_ratio)


@pytest.mark.parametrize("order", [(("one", "four"),), (NAMES,), (("one",), ("two",)), ((),)])
def test_an_order_that_is_none_is_refused(order: tuple[tuple[str, ...], ...]) -> None:
    with pytest.raises(ValidationError, match=r"fallback \d has some, but not all, of the members"):
        recipe_of(*NAMES, fallbacks=order)
