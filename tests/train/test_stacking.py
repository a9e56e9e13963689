from dataclasses import replace

import numpy as np
import pytest
import torch

from model.labels import CLASSES
from model.network.deepser import DeepSER
from model.network.metaclassifier import WIDTH, MetaClassifier
from tests.train.synthetic import TRAINED, make_examples, make_member, make_recipe, make_training_set
from train.config import MetaConfig, Recipe
from train.dataset import Examples
from train.loop import SELECTION_RESAMPLES, class_bias
from train.metrics import balanced_macro_f1
from train.prepare import Prepared
from train.results import results_of
from train.stacking import Stacked, stack
from train.stages.members import ALL_SPEAKERS, TrainingSet
from train.stages.meta import HeldOut, StackingSet, greedy_ingredients, meta_posterior, meta_score, soup, train_meta

LABELS = (*TRAINED, "angry", "angry", None) * 6
BIAS = class_bias(TRAINED)


def recipe_with(kind: str, seeds: tuple[int, ...] = (1, 2, 3)) -> Recipe:
    return make_recipe(meta={"folds": 2, "epochs": 3, "seeds": list(seeds), "soup": kind})


def prepared(training: TrainingSet) -> Prepared:
    return Prepared(
        training,
        test={},
        otherwise={},
        alone=(training.copies, training.dev),
        adaptation=None,
        votes={},
        genders={},
        word_confidence={},
        dropped={},
        notes={},
    )


def members(whole: int = 7) -> dict[str, dict[int, DeepSER]]:
    return {"tiny": {fold: make_member(seed=seed) for fold, seed in ((ALL_SPEAKERS, whole), (0, 8), (1, 9))}}


def weights(runs: tuple[MetaClassifier, ...]) -> torch.Tensor:
    return torch.stack([run.linear.weight.detach() for run in runs])


@pytest.fixture(scope="module")
def training() -> TrainingSet:
    return make_training_set(make_examples(LABELS))


@pytest.fixture(scope="module")
def stacked(training: TrainingSet) -> Stacked:
    return stack(recipe_with("uniform"), prepared(training), members())


def test_an_ensemble_ends_in_the_soup_of_all_its_runs(stacked: Stacked) -> None:
    assert len(stacked.runs) == 3
    assert stacked.ingredients == (0, 1, 2)
    torch.testing.assert_close(stacked.soup.linear.weight, weights(stacked.runs).mean(dim=0))
    assert not torch.allclose(stacked.soup.linear.weight, stacked.runs[0].linear.weight)


def test_the_stacker_learns_nothing_from_the_selection_set(training: TrainingSet, stacked: Stacked) -> None:
    """Other development speakers, other curves, and the same runs."""
    dev = make_examples(TRAINED * 5, seed=5)
    other = replace(training, dev=replace(dev, targets=np.roll(dev.targets, 1, axis=0)))
    found = stack(recipe_with("uniform"), prepared(other), members())
    assert torch.equal(weights(found.runs), weights(stacked.runs))
    assert found.histories != stacked.histories


def test_the_stacker_learns_nothing_from_members_that_have_seen_its_clips(
    training: TrainingSet, stacked: Stacked
) -> None:
    found = stack(recipe_with("uniform"), prepared(training), members(whole=77))
    assert torch.equal(weights(found.runs), weights(stacked.runs))
    assert found.temperature != stacked.temperature  # which is fitted on what the whole members say


def test_every_run_has_its_curve(stacked: Stacked) -> None:
    for history in stacked.histories:
        assert [row["epoch"] for row in history.rows] == [0, 1, 2]
        assert history.best_epoch == 2
        assert history.steps == 3  # a balanced subset fits one batch
        assert len({row["examples"] for row in history.rows}) == 1
        assert 0 < history.rows[0]["examples"] < len(LABELS)
    curves = [[row["dev_macro_f1"] for row in history.rows] for history in stacked.histories]
    assert all(0.0 <= score <= 1.0 for curve in curves for score in curve)
    assert len({history.rows[0]["loss"] for history in stacked.histories}) == 3


def telling(labels: tuple[str, ...]) -> HeldOut:
    """Outputs of one member that says the class itself."""
    examples: Examples = make_examples(labels)
    outputs = np.zeros((len(labels), WIDTH), np.float32)
    outputs[:, : len(CLASSES)] = np.eye(len(CLASSES), dtype=np.float32)[examples.dominant]
    return HeldOut(torch.from_numpy(outputs), examples)


def run_that_says(columns: dict[str, str]) -> MetaClassifier:
    """A meta-classifier that gives each class of its member another name."""
    run = MetaClassifier(1)
    with torch.no_grad():
        run.linear.weight.zero_()
        run.linear.bias.zero_()
        for heard, said in columns.items():
            run.linear.weight[CLASSES.index(said), CLASSES.index(heard)] = 1.0
    return run


def test_a_greedy_soup_leaves_out_what_lowers_its_score() -> None:
    dev = telling(TRAINED * 5)
    right = run_that_says({name: name for name in TRAINED})
    wrong = run_that_says({"angry": "sad", "sad": "angry", "happy": "neutral", "neutral": "happy"})
    with torch.no_grad():
        wrong.linear.weight.mul_(3)
    half = run_that_says({"angry": "angry", "sad": "sad"})
    runs = [wrong, half, right, right]
    scores = [meta_score(run, dev, BIAS) for run in runs]
    assert scores[2] == scores[3] == 1.0 > scores[1] > scores[0] == 0.0
    assert greedy_ingredients(runs, dev, BIAS) == (2, 3, 1)  # `half` is right on two classes and wrong on none
    mixed = soup([runs[number] for number in (2, 3, 1)])
    assert meta_score(mixed, dev, BIAS) == 1.0
    assert meta_score(soup(runs), dev, BIAS) < 1.0


def test_a_greedy_soup_of_a_recipe_is_never_worse_than_its_best_run(training: TrainingSet) -> None:
    found = stack(recipe_with("greedy", tuple(range(8))), prepared(training), members())
    chosen = tuple(found.runs[number] for number in found.ingredients)
    assert len(set(found.ingredients)) == len(chosen) >= 1
    torch.testing.assert_close(found.soup.linear.weight, weights(chosen).mean(dim=0))
    assert found.histories[found.ingredients[0]].rows[-1]["dev_macro_f1"] == max(
        history.rows[-1]["dev_macro_f1"] for history in found.histories
    )


def test_a_curve_ends_at_the_score_of_the_run_that_is_returned(training: TrainingSet) -> None:
    dev = telling(TRAINED * 5)
    config = MetaConfig(folds=2, epochs=4, seeds=(1,), learning_rate=0.3)
    run, history = train_meta(StackingSet(dev.outputs, dev.examples, TRAINED), config, 1, dev)
    guesses = meta_posterior(run, dev.outputs, BIAS, 1.0).argmax(axis=1)
    expected = balanced_macro_f1(dev.examples.dominant, guesses, SELECTION_RESAMPLES, seed=0)
    assert history.rows[-1]["dev_macro_f1"] == expected
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]


@pytest.mark.parametrize("kind", ["uniform", "greedy"])
def test_seeds_and_ingredients_are_told(training: TrainingSet, kind: str) -> None:
    recipe = recipe_with(kind, (11, 12, 13))
    found = stack(recipe, prepared(training), members())
    results = results_of(recipe, prepared(training), found, {}, [])
    assert results["seeds"] == {
        "recipe": recipe.seed,
        "split": recipe.data.split_seed,
        "members": {"tiny": 5},
        "meta": [11, 12, 13],
        "soup": {"kind": kind, "ingredients": [recipe.meta.seeds[number] for number in found.ingredients]},
    }
    assert ("greedy" in results["summary"]) == (kind == "greedy")
