"""Guesses in the place of labels: how they stand beside labelled examples, and how sure they are."""

import numpy as np
import pytest

from model.labels import CLASS_INDEX
from tests.train.synthetic import TRAINED, make_examples
from train.pseudo_labels import Guessed, sharpened


def test_every_copy_has_the_labelled_as_often_as_they_count_and_the_guessed_once() -> None:
    labelled = tuple(make_examples(TRAINED, seed=seed) for seed in (1, 2, 3))
    guessed = tuple(make_examples(TRAINED * 4, seed=seed) for seed in (4, 5))
    other = tuple(make_examples(TRAINED[:1], seed=seed) for seed in (6, 7))
    found = Guessed({0: guessed, 1: other}, label_weight=3).beside(labelled, 0)
    assert len(found) == 3
    for copy, own, beside in zip(found, labelled, (*guessed, guessed[0]), strict=True):
        assert copy.ids == own.ids * 3 + beside.ids
        for name, rows in copy.frames.items():
            assert all(a is b for a, b in zip(rows, [*own.frames[name]] * 3 + [*beside.frames[name]], strict=True))
    assert len(Guessed({1: other}, 1).beside(labelled, 1)[0]) == len(TRAINED) + 1


def test_a_handful_of_guesses_does_not_multiply_the_epoch() -> None:
    labelled, few = make_examples(TRAINED * 4), (make_examples(TRAINED[:1], seed=1),)
    (found,) = Guessed({0: few}, label_weight=8).beside((labelled,), 0)
    assert len(found) == len(labelled) + 1


def test_a_fold_that_nothing_was_guessed_for_has_its_labels_alone() -> None:
    labelled = (make_examples(TRAINED), make_examples(TRAINED, seed=1))
    given = Guessed({1: (make_examples(TRAINED, seed=2),)}, label_weight=8)
    assert [copy.ids for copy in given.beside(labelled, 0)] == [copy.ids for copy in labelled]
    assert given.classes(0) == frozenset()
    assert given.classes(1) == {CLASS_INDEX[name] for name in TRAINED}


def test_where_nothing_is_labelled_the_guessed_stand_alone() -> None:
    guessed = tuple(make_examples(TRAINED, seed=seed) for seed in (4, 5))
    nobody = guessed[0].subset(np.array([], np.int64))
    found = Guessed({0: guessed}, label_weight=8).beside((nobody,), 0)
    assert [copy.ids for copy in found] == [copy.ids for copy in guessed]


def test_sharpening_keeps_the_order_and_what_is_impossible() -> None:
    posterior = np.zeros((2, 8), np.float32)
    angry, sad, neutral = (CLASS_INDEX[name] for name in ("angry", "sad", "neutral"))
    posterior[0, [angry, sad]] = 0.8, 0.2
    posterior[1, [angry, sad, neutral]] = 0.5, 0.25, 0.25
    np.testing.assert_array_equal(sharpened(posterior, 1.0), posterior)
    found = sharpened(posterior, 2.0)
    np.testing.assert_allclose(found[0, [angry, sad]], [16 / 17, 1 / 17], rtol=1e-6)
    np.testing.assert_allclose(found[1, [angry, sad, neutral]], [2 / 3, 1 / 6, 1 / 6], rtol=1e-6)
    assert found.sum(axis=1) == pytest.approx(1.0)
    assert np.isfinite(sharpened(np.full((1, 8), 0.125, np.float32), 1000.0)).all()
    assert (found[posterior == 0] == 0).all()
