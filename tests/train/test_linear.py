"""Fitting linear members: that the problem is solved, what holds the weights, what names them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from model.labels import CLASS_INDEX
from model.network.linear import Linear
from model.network.member import build_member
from model.spec import SpecError
from tests.model.tiny import tiny_linear
from tests.train.synthetic import ENCODERS, TRAINED, make_examples, make_recipe, make_training_set
from train.config import STARTED, LinearConfig, Recipe
from train.dataset import Examples, concatenate, make_batch, one_hot
from train.history import learning_curves, linear_fits
from train.linear import fit_linear
from train.loop import StageData, class_bias, predict
from train.losses import PAPER, Terms, class_weights, multitask_loss
from train.stages.members import ALL_SPEAKERS, Job, last_key, selected_stages, train_member
from train.transfer.start import Start

LABELS = (*TRAINED, None) * 8
SPEC = tiny_linear("flat", ("prosody", "text"))
ONE = LinearConfig(l2=(0.2,), draws=1)


def fresh() -> Linear:
    member = build_member(SPEC, ENCODERS)
    assert isinstance(member, Linear)
    return member


def data_of(examples: Examples, dev: Examples | None = None, **changes: Any) -> StageData:
    data = StageData(lambda rng: examples, dev, torch.ones(8), TRAINED)
    return replace(data, **changes)


def recipe_with(**sections: Any) -> Recipe:
    members = [
        {"name": "tiny", "modalities": ["prosody", "text"], "seed": 5},
        {"name": "flat", "modalities": ["prosody", "text"], "seed": 6, "family": "linear"},
    ]
    return make_recipe(**{"members": members, **sections})


def jobs(recipe: Recipe, fold: int = ALL_SPEAKERS) -> tuple[Job, Job]:
    tiny, flat = recipe.member_specs()
    return Job(tiny, fold), Job(flat, fold)


def slope(member: Linear, held: Linear, examples: Examples, l2: float) -> torch.Tensor:
    """Gradient of the whole problem at a member's weights, computed from its definition."""
    batch = make_batch(examples, {n: ENCODERS[n] for n in SPEC.modalities})
    weights, bias = class_weights(examples.targets, 1.0), class_bias(TRAINED)
    logits, attributes = member(batch.frames, batch.masks)
    loss = multitask_loss(logits, attributes, batch.labels, weights, bias, terms=PAPER)
    for ours, theirs in ((member.classifier, held.classifier), (member.regressor, held.regressor)):
        loss = loss + l2 / 2 * (ours.weight - theirs.weight.detach()).square().sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(member.parameters()))])


def test_the_fit_ends_where_the_problem_has_its_minimum() -> None:
    examples, member = make_examples(LABELS), fresh()
    begun = slope(member, fresh(), examples, 0.2).norm()
    history = fit_linear(member, ENCODERS, data_of(examples), ONE, seed=0)
    assert slope(member, fresh(), examples, 0.2).norm() < 1e-3 * begun
    assert history.steps > 3
    assert (history.best_epoch, [row["l2"] for row in history.rows]) == (0, [0.2])


def test_it_agrees_with_logistic_regression() -> None:
    """Of another library, on the same means, where targets are hard, classes as frequent, and attributes do not count."""
    examples, member = one_hot(make_examples(TRAINED * 12)), fresh()
    l2 = 0.05
    fit_linear(member, ENCODERS, data_of(examples, terms=Terms(1.0, 0.0)), LinearConfig(l2=(l2,), draws=1), seed=0)
    means = np.concatenate(
        [np.stack([rows.astype(np.float32).mean(axis=0) for rows in examples.frames[n]]) for n in SPEC.modalities],
        axis=1,
    )
    other = LogisticRegression(C=1.0 / (l2 * len(examples)), max_iter=2000, tol=1e-8).fit(means, examples.intended)
    found = predict(member, ENCODERS, examples, class_bias(TRAINED))[0][:, other.classes_]
    np.testing.assert_allclose(found, other.predict_proba(means), atol=2e-3)
    assert np.ptp(found) > 0.5


def test_all_draws_are_fitted_at_once() -> None:
    """What comes of the second draw alone would differ."""
    first, second = make_examples(LABELS, seed=1), make_examples(LABELS, seed=2)
    draws = iter((first, second))
    member, expected = fresh(), fresh()
    data = data_of(first)
    fit_linear(member, ENCODERS, replace(data, epoch=lambda rng: next(draws)), LinearConfig(l2=(0.2,), draws=2), seed=0)
    fit_linear(expected, ENCODERS, replace(data, epoch=lambda rng: concatenate([first, second])), ONE, seed=0)
    torch.testing.assert_close(member.classifier.weight, expected.classifier.weight, atol=1e-4, rtol=0)
    alone = fresh()
    fit_linear(alone, ENCODERS, data_of(second), ONE, seed=0)
    assert not torch.allclose(member.classifier.weight, alone.classifier.weight, atol=1e-2)


def test_a_class_that_only_stray_votes_are_for_has_no_mass_to_give_it() -> None:
    """It would weigh hundreds of times what others do."""
    examples = make_examples(TRAINED * 12)
    stray = examples.targets.copy()
    stray[0, CLASS_INDEX["surprise"]] = 0.1
    stray[0] /= stray[0].sum()
    member, classes = fresh(), (*TRAINED, "surprise")
    fit_linear(member, ENCODERS, data_of(replace(examples, targets=stray), trained_classes=classes), ONE, seed=0)
    others = predict(member, ENCODERS, make_examples(TRAINED * 12, seed=5), class_bias(classes))[0]
    assert others[:, CLASS_INDEX["surprise"]].mean() < 0.02
    assert others[:, CLASS_INDEX["sad"]].mean() > 0.1


def test_held_out_speakers_choose_the_strength() -> None:
    """Clips of which most are told wrong: a weak pull learns them by heart, and others are judged wrong by it."""
    examples, dev = make_examples(LABELS, signal=0.3), make_examples(TRAINED * 30, seed=3, signal=0.3)
    config = LinearConfig(l2=(1e-6, 0.3, 1e3), draws=1)
    member = fresh()
    history = fit_linear(member, ENCODERS, data_of(examples, dev), config, seed=0)
    scores = [row["dev_macro_f1"] for row in history.rows]
    assert history.best_epoch == int(np.argmax(scores))
    assert len(set(scores)) > 1
    alone = fresh()
    fit_linear(alone, ENCODERS, data_of(examples), LinearConfig(l2=(config.l2[history.best_epoch],), draws=1), seed=0)
    assert torch.equal(member.classifier.weight, alone.classifier.weight)


def test_without_held_out_speakers_the_first_strength_stands() -> None:
    history = fit_linear(fresh(), ENCODERS, data_of(make_examples(LABELS)), LinearConfig(l2=(0.3, 0.1)), seed=0)
    assert ([row["l2"] for row in history.rows], history.best_epoch) == ([0.3], 0)


def test_a_transferred_member_is_held_to_its_source(tmp_path: Path) -> None:
    """The stronger the pull, the nearer; and the fit still ends at the minimum of the problem around the source."""
    recipe, taught = recipe_with(linear={"l2": [0.2], "draws": 1}, text=None), make_examples(LABELS, seed=1)
    source = train_member(jobs(recipe)[1], recipe, make_training_set(taught), tmp_path / "source")
    assert isinstance(source, Linear)
    start = Start({"flat": source.state_dict()})
    target = make_training_set(make_examples(TRAINED * 4, seed=8))
    away = []
    for number, l2 in enumerate((0.01, 1.0, 1e4)):
        own = recipe_with(linear={"l2": [l2], "draws": 1}, text=None)
        data = replace(target, start=start, bank=None, selects=False, content=str(number))
        found = train_member(jobs(own)[1], own, data, tmp_path / str(l2))
        assert isinstance(found, Linear)
        away.append(float((found.classifier.weight - source.classifier.weight).detach().norm()))
        assert torch.equal(found.stacks.state_dict()["text.mean"], source.stacks.state_dict()["text.mean"])
    assert away[0] > 2 * away[1] > 200 * away[2]


def test_few_clips_are_held_as_much_more_as_they_are_fewer(tmp_path: Path) -> None:
    """As clips beside `held` others: 16 of them under `held = 32` as under twice the pull, and all above `held` alike."""
    examples, start = make_examples(TRAINED * 4, seed=8), fresh()
    found = []
    for l2, held in ((0.2, 32.0), (0.4, 0.0), (0.2, 16.0), (0.2, 0.0)):
        member = fresh()
        member.load_state_dict(start.state_dict())
        config = LinearConfig(l2=(l2,), draws=2, held=held)
        fit_linear(member, ENCODERS, data_of(examples, from_start=True), config, seed=0)
        found.append(member.classifier.weight.detach())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[3])
    assert not torch.allclose(found[0], found[2], atol=1e-3)


def test_a_transfer_of_no_epochs_leaves_it_as_it_is(tmp_path: Path) -> None:
    still = recipe_with().stage1.model_dump() | {"epochs": 0}
    source, examples = fresh(), make_examples(LABELS)
    fit_linear(source, ENCODERS, data_of(examples), ONE, seed=0)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.copy_(parameter.half())
    plain = recipe_with().model_dump() | {"stage1": still}
    recipe = Recipe.model_validate(plain, context={STARTED: True})
    data = replace(make_training_set(examples), start=Start({"flat": source.state_dict()}), selects=False)
    kept = train_member(jobs(recipe)[1], recipe, data, tmp_path)
    assert all(torch.equal(values, kept.state_dict()[name]) for name, values in source.state_dict().items())
    moved = train_member(jobs(recipe_with())[1], recipe_with(), data, tmp_path)
    assert not torch.equal(moved.get_parameter("classifier.weight"), source.classifier.weight)


def test_a_start_that_nothing_beats_is_kept() -> None:
    """Fitted on clips whose labels are exchanged."""
    good, wrong = make_examples(TRAINED * 20, signal=3.0), make_examples(TRAINED * 20, seed=4, signal=3.0)
    member = fresh()
    fit_linear(member, ENCODERS, data_of(good), ONE, seed=0)
    was = member.classifier.weight.detach().clone()
    exchanged = replace(wrong, targets=wrong.targets[:, [CLASS_INDEX[n] for n in reversed(tuple(CLASS_INDEX))]])
    history = fit_linear(member, ENCODERS, data_of(exchanged, good, from_start=True), ONE, seed=0)
    assert history.best_epoch == -1
    assert history.start_score > history.rows[0]["dev_macro_f1"]
    assert torch.equal(member.classifier.weight, was)


def test_a_recipe_fits_it_once_and_reads_it_back(tmp_path: Path) -> None:
    recipe = recipe_with(linear={"l2": [0.5, 0.1], "draws": 8})
    data = make_training_set(make_examples(LABELS), make_examples(LABELS, seed=7))
    for fold in (ALL_SPEAKERS, 0):
        job = jobs(recipe, fold)[1]
        fitted = train_member(job, recipe, data, tmp_path)
        again = train_member(job, recipe, data, tmp_path, lambda *row: pytest.fail("fitted again"))
        other = train_member(job, recipe, data, tmp_path / "other")
        for name, values in fitted.state_dict().items():
            assert torch.equal(values, again.state_dict()[name]), name
            assert torch.equal(values, other.state_dict()[name]), name
    assert not list(tmp_path.glob("*.stage2.*"))
    keys = selected_stages([jobs(recipe, fold)[1] for fold in (ALL_SPEAKERS, 0)], recipe, data)
    assert selected_stages([jobs(recipe)[1]], recipe, replace(data, selects=False)) == frozenset()
    assert learning_curves(tmp_path, ("flat",), keys) == []
    rows = linear_fits(tmp_path, ("flat",), keys)
    assert [(row["member"], row["fold"], row["l2"], row["examples"]) for row in rows] == [
        ("flat", None, [0.5, 0.1], 8 * len(LABELS)),
        ("flat", 0, [0.5, 0.1], 8 * len(LABELS) // 2),
    ]
    assert all(row["kept"] in row["l2"] for row in rows)


def test_it_is_named_by_what_decides_its_weights() -> None:
    """No epoch is any business of a linear member, and no strength any of another's."""
    recipe = recipe_with()
    stage = recipe.stage1.model_dump() | {"epochs": 7}
    for changed, moved in (
        (recipe_with(stage1=stage), "tiny"),
        (recipe_with(stage2=stage), "tiny"),
        (recipe_with(linear={"l2": [0.3]}), "flat"),
        (recipe_with(linear={"draws": 2}), "flat"),
        (recipe_with(linear={"held": 2.0}), "flat"),
    ):
        keys = [[last_key(job, r, "data") for job in jobs(r)] for r in (recipe, changed)]
        assert [job.member.name for job, *pair in zip(jobs(recipe), *keys, strict=True) if pair[0] != pair[1]] == [
            moved
        ]


@pytest.mark.parametrize(("given", "said"), [([], "at least 1"), ([0.5, 0.0], "above 0"), ([0.5, 0.5], "different")])
def test_strengths_that_make_no_sense_are_refused(given: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LinearConfig(l2=tuple(given))


def test_defaults_of_other_families_are_not_its_own() -> None:
    defaults = recipe_with().member_defaults.model_dump() | {"attention": "vad-guided", "input_dropout": 0.5}
    tiny, flat = recipe_with(member_defaults=defaults).member_specs()
    assert (tiny.attention, flat.attention, flat.dim, flat.input_dropout) == ("vad-guided", "plain", 0, 0)
    sized = [{"name": "flat", "modalities": ["text"], "seed": 6, "family": "linear", "dim": 8}]
    with pytest.raises((SpecError, ValueError), match="a linear member has heads and nothing that these set: dim = 8"):
        recipe_with(members=sized)
