"""Faults of published research code for this recipe: one test each, so that they do not come back.

Here: the training step, its data and the stacking. In `test_stacking`: what the stacker learns from, and that there is a
soup at all. Speaker overlap is in `test_manifest`, label maps in `corpora/test_label_maps`, rows joined by id in
`test_dataset`, trimmed tokens and whole utterances in `test_features`, encoder states (and not the decoder's) in
`model/network/test_whisper_encoder`, encoders that saw the labels of a test corpus in `test_run`.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch

from model.features import FUNCTIONALS_STEPS
from model.labels import CLASS_INDEX
from model.network.deepser import DeepSER
from model.network.member import Member, build_member
from model.network.metaclassifier import Ensemble
from model.spec import EnsembleSpec
from tests.train.synthetic import (
    ENCODERS,
    RECIPES,
    TRAINED,
    make_examples,
    make_member,
    make_recipe,
    make_training_set,
    optimizer_steps,
)
from train.config import MetaConfig, StageConfig, load_recipe
from train.dataset import Examples, HalfFrames, balanced_subset, make_batch
from train.loop import StageData, class_bias, predict, selection_score, train_stage
from train.losses import multitask_loss
from train.metrics import balanced_macro_f1
from train.micl import Contrast, contrastive_loss
from train.pairing import Pairing, TextBank
from train.stages.members import Job, out_of_fold, train_member
from train.stages.meta import HeldOut, StackingSet, soup, stacked_outputs, train_meta

LABELS = (*TRAINED, "angry", "angry", None) * 6  # 18 angry, 6 of each other class, 6 without consensus
BIAS = class_bias(TRAINED)


def stage(
    epochs: int = 2, learning_rate: float = 1e-3, mixup: float = 0.0, accumulate: int = 1, patience: int | None = None
) -> StageConfig:
    return StageConfig(
        epochs=epochs,
        batch_size=8,
        learning_rate=learning_rate,
        mixup=mixup,
        accumulate=accumulate,
        patience=patience,
    )


def all_of(examples: Examples, dev: Examples | None = None) -> StageData:
    return StageData(lambda rng: examples, dev, torch.ones(8), TRAINED)


# Optimisation.


def test_every_batch_takes_one_optimizer_step() -> None:
    examples = make_examples(LABELS)
    with optimizer_steps() as steps:
        history = train_stage(make_member(), ENCODERS, all_of(examples), stage(epochs=3), seed=0)
    batches = -(-len(examples) // 8)
    assert len(steps) == history.steps == 3 * batches == 18


@pytest.mark.parametrize("accumulate", [2, 4, 9])
def test_accumulated_batches_take_one_step_together_and_the_last_few_are_not_lost(accumulate: int) -> None:
    examples = make_examples(LABELS)
    with optimizer_steps() as steps:
        history = train_stage(make_member(), ENCODERS, all_of(examples), stage(epochs=3, accumulate=accumulate), seed=0)
    assert len(steps) == history.steps == 3 * ceil(6 / accumulate)


def test_one_optimizer_serves_a_whole_stage(tmp_path: Path) -> None:
    recipe = make_recipe()
    with optimizer_steps() as steps:
        train_member(Job(recipe.member_specs()[0], 0), recipe, make_training_set(make_examples(LABELS)), tmp_path)
    changes = [a is not b for (a, _), (b, _) in zip(steps, steps[1:], strict=False)]
    assert sum(changes) == 1  # from stage 1 to stage 2


def test_learning_rates_are_the_recipe_s() -> None:
    rates: dict[float, np.ndarray] = {}
    for rate in (1e-3, 5e-3):
        with optimizer_steps() as steps:
            train_stage(make_member(), ENCODERS, all_of(make_examples(LABELS)), stage(4, rate), seed=0)
        rates[rate] = np.array([found for _, found in steps])
        assert 0.95 * rate < rates[rate].max() <= rate
        assert rates[rate][-1] < 0.05 * rate
    np.testing.assert_allclose(rates[5e-3], 5 * rates[1e-3])


def test_the_meta_classifier_s_learning_rate_is_the_recipe_s() -> None:
    with optimizer_steps() as steps:
        train_meta(
            StackingSet(torch.zeros(42, 11), make_examples(LABELS), TRAINED),
            MetaConfig(folds=2, epochs=3, seeds=(1,), learning_rate=0.03, batch_size=10),
            1,
            HeldOut(torch.zeros(42, 11), make_examples(LABELS)),
        )
    assert {rate for _, rate in steps} == {0.03}
    assert len({id(optimizer) for optimizer, _ in steps}) == 1
    assert len(steps) == 3 * 3  # 30 balanced rows an epoch


# Sampling.


def test_every_epoch_draws_a_new_balanced_subset() -> None:
    examples, drawn = make_examples(LABELS), []

    def epoch(rng: np.random.Generator) -> Examples:
        drawn.append(examples.subset(balanced_subset(examples.dominant, rng)))
        return drawn[-1]

    train_stage(make_member(), ENCODERS, StageData(epoch, None, torch.ones(8), TRAINED), stage(4), seed=0)
    assert len({frozenset(subset.ids) for subset in drawn}) == 4
    assert all(np.bincount(subset.dominant + 1, minlength=9)[[0, 1, 2, 3, 8]].tolist() == [6] * 5 for subset in drawn)


class NotingBank(TextBank):
    """Notes which clips each epoch draws; has no sentence, so that all keep their own words."""

    def __init__(self) -> None:
        super().__init__({})
        self.drawn: list[frozenset[str]] = []

    def pair(self, examples: Examples, pairing: Pairing, rng: np.random.Generator) -> Examples:
        self.drawn.append(frozenset(examples.ids))
        return examples


def test_every_epoch_of_stage_2_of_a_member_draws_anew(tmp_path: Path) -> None:
    bank, recipe = NotingBank(), make_recipe(stage2=stage(5).model_dump())
    data = replace(make_training_set(make_examples(LABELS, speakers=1)), bank=bank)
    train_member(Job(recipe.member_specs()[0], 1), recipe, data, tmp_path)
    assert [len(drawn) for drawn in bank.drawn] == [42] * 2 + [30] * 5
    assert len(set(bank.drawn[2:])) == 5


def test_stage_1_trains_on_everything_and_stage_2_on_balanced_subsets(tmp_path: Path) -> None:
    recipe, rows = make_recipe(), []
    data = make_training_set(make_examples(LABELS, speakers=1), folds=2)
    job = Job(recipe.member_specs()[0], 1)  # no example is in fold 1
    train_member(job, recipe, data, tmp_path, lambda stage, row: rows.append((stage, row["examples"])))
    assert rows == [("stage1", 42)] * 2 + [("stage2", 30)] * 2


def test_stage_3_samples_balanced() -> None:
    """Outputs that tell nothing: the classes' frequencies must not be learned, though nine in ten are angry."""
    examples = make_examples(("angry",) * 90 + ("sad",) * 10)
    config = MetaConfig(folds=2, epochs=60, seeds=(1,), learning_rate=0.05)
    dev = HeldOut(torch.zeros(100, 11), examples)
    meta, _ = train_meta(StackingSet(torch.zeros(100, 11), examples, ("angry", "sad")), config, 1, dev)
    with torch.no_grad():
        posterior = torch.softmax(meta(torch.zeros(1, 11))[0] + class_bias(("angry", "sad")), dim=1)
    assert posterior[0, CLASS_INDEX["angry"]] == pytest.approx(0.5, abs=0.03)


# Labels.


def test_soft_labels_are_kept_without_mixup() -> None:
    """The same frames with the votes 60 : 40 end as a posterior of 60 : 40, and not as 100 : 0."""
    examples = make_examples(("angry",) * 16)
    for rows in examples.frames["prosody"]:
        rows[:] = 1.0
    examples.targets[:] = 0.0
    examples.targets[:, [CLASS_INDEX["angry"], CLASS_INDEX["sad"]]] = [0.6, 0.4]
    member = make_member(("prosody",))
    train_stage(member, ENCODERS, all_of(examples), stage(40, 0.03, mixup=0.0), seed=0)
    posterior, _ = predict(member, ENCODERS, examples, BIAS)
    assert posterior[:, CLASS_INDEX["angry"]] == pytest.approx(0.6, abs=0.05)
    assert posterior[:, CLASS_INDEX["sad"]] == pytest.approx(0.4, abs=0.05)


def test_ties_have_no_class_and_do_not_count_in_selection() -> None:
    dev = make_examples(LABELS)
    tied = np.flatnonzero(dev.dominant == -1)
    assert len(tied) == 6
    member = make_member()
    clear = dev.subset(np.flatnonzero(dev.dominant >= 0))
    assert selection_score(member, ENCODERS, dev, BIAS) == selection_score(member, ENCODERS, clear, BIAS)


# Evaluation.


def varied_member(examples: Examples) -> DeepSER:
    """A member that is often right."""
    member = make_member()
    train_stage(member, ENCODERS, all_of(examples), stage(12, 2e-2), seed=0)
    return member


def test_the_selection_metric_is_computed_on_the_whole_held_out_set() -> None:
    member = varied_member(make_examples(LABELS, seed=1))
    dev = make_examples(TRAINED * 40, seed=2)  # three batches of prediction
    dev.targets[80:] = np.roll(dev.targets[80:], 1, axis=0)  # wrong, so that a part's score is not the whole's
    single = [predict(member, ENCODERS, dev.subset([row]), BIAS)[0][0].argmax() for row in range(len(dev))]
    guesses, score = np.array(single), selection_score(member, ENCODERS, dev, BIAS)
    assert score == balanced_macro_f1(dev.dominant, guesses, 10, seed=0)
    first, last = (balanced_macro_f1(dev.dominant[p], guesses[p], 10, 0) for p in (slice(80), slice(80, None)))
    assert last + 0.1 < score < first - 0.1


def test_neither_padding_nor_neighbours_change_a_prediction() -> None:
    examples = make_examples(LABELS)
    member = varied_member(examples)
    together = predict(member, ENCODERS, examples, BIAS)
    for row in range(len(examples)):
        alone = predict(member, ENCODERS, examples.subset([row]), BIAS)
        for found, expected in zip(alone, together, strict=True):
            np.testing.assert_allclose(found[0], expected[row], atol=1e-5)
    assert np.ptp(together[0], axis=0).max() > 0.5


def test_the_best_epoch_is_the_one_that_is_kept() -> None:
    """From the third epoch on, labels are exchanged: what was learned before is unlearned."""
    good, dev = make_examples(LABELS, signal=2.0), make_examples(TRAINED * 6, seed=3, signal=2.0)
    bad = replace(good, targets=good.targets[::-1].copy())
    epochs = iter([good] * 8 + [bad] * 8)
    data = StageData(lambda rng: next(epochs), dev, torch.ones(8), TRAINED)
    member = make_member()
    history = train_stage(member, ENCODERS, data, stage(16, 5e-3), seed=0)
    scores = [row["dev_macro_f1"] for row in history.rows]
    assert history.best_epoch == int(np.argmax(scores))
    assert scores[-1] < max(scores)
    assert selection_score(member, ENCODERS, dev, BIAS) == max(scores)
    assert not member.training


def test_early_stopping_counts_anew_in_every_stage(tmp_path: Path) -> None:
    """Stage 1 hardly learns and ends early; a counter that lived on would end stage 2 at once."""
    standing = stage(9, 1e-9, patience=2).model_dump()
    recipe = make_recipe(stage1=standing, stage2=stage(9, 1e-3, patience=4).model_dump())
    rows: dict[str, list[float]] = {"stage1": [], "stage2": []}
    data = make_training_set(make_examples(LABELS))
    job = Job(recipe.member_specs()[0], 0)
    train_member(job, recipe, data, tmp_path, lambda name, row: rows[name].append(row["dev_macro_f1"]))
    assert len(rows["stage1"]) == 3  # the first is the best, two do not gain
    assert len(rows["stage2"]) >= 5
    notes = json.loads((tmp_path / "tiny-without-fold-0.stage2.json").read_text())
    assert len(rows["stage2"]) == min(9, notes["best_epoch"] + 1 + 4)


def test_a_stage_keeps_one_file_with_its_best_epoch_named(tmp_path: Path) -> None:
    recipe = make_recipe()
    train_member(Job(recipe.member_specs()[0], 0), recipe, make_training_set(make_examples(LABELS)), tmp_path)
    name = "tiny-without-fold-0"
    expected = {f"{name}.stage{n}.{kind}" for n in (1, 2) for kind in ("json", "safetensors")}
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert '"best_epoch": ' in (tmp_path / f"{name}.stage2.json").read_text()


# Stacking.


def test_stacking_sees_predictions_of_members_that_never_saw_the_speaker() -> None:
    data = make_training_set(make_examples(LABELS), folds=3)
    members = {fold: make_member(seed=fold).eval() for fold in range(3)}
    posterior, attributes = out_of_fold(members, ENCODERS, data.train, data)
    for fold, member in members.items():
        rows = np.flatnonzero(data.folds == fold)
        expected = predict(member, ENCODERS, data.train.subset(rows), class_bias(data.trained_classes))
        np.testing.assert_allclose(posterior[rows], expected[0], atol=1e-6)
        np.testing.assert_allclose(attributes[rows], expected[1], atol=1e-6)
    first, second = (predict(members[fold], ENCODERS, data.train, BIAS)[0] for fold in (0, 1))
    assert np.abs(first - second).max() > 0.01  # the members differ, so a mix-up would show


def test_an_example_without_an_out_of_fold_prediction_is_refused() -> None:
    data = make_training_set(make_examples(LABELS), folds=3)
    with pytest.raises(ValueError, match="belong to no fold"):
        out_of_fold({0: make_member(), 2: make_member()}, ENCODERS, data.train, data)


def test_a_member_learns_nothing_from_its_held_out_fold(tmp_path: Path) -> None:
    recipe, train = make_recipe(), make_examples(LABELS)
    plain = make_training_set(train)
    states = {}
    for changed in (None, 0, 1):
        targets, frames = train.targets.copy(), {name: list(rows) for name, rows in train.frames.items()}
        for row in np.flatnonzero(plain.folds == changed) if changed is not None else ():
            targets[row] = np.roll(targets[row], 1)
            frames["prosody"][row] = frames["prosody"][row] * 5
        other = replace(train, frames=frames, targets=targets)
        job = Job(recipe.member_specs()[0], 0)
        member = train_member(job, recipe, make_training_set(other, other), tmp_path / str(changed))
        states[changed] = torch.cat([values.flatten() for values in member.state_dict().values()])
    assert torch.equal(states[None], states[0])
    assert not torch.allclose(states[None], states[1])


def test_no_activation_stands_behind_the_meta_classifier() -> None:
    outputs = stacked_outputs([predict(make_member(), ENCODERS, make_examples(LABELS), BIAS)])
    config = MetaConfig(folds=2, epochs=20, seeds=(1,), learning_rate=0.05)
    dev = HeldOut(outputs, make_examples(LABELS))
    meta, _ = train_meta(StackingSet(outputs, dev.examples, TRAINED), config, 1, dev)
    with torch.no_grad():
        logits = meta(outputs)[0]
        torch.testing.assert_close(logits, meta.linear(outputs)[:, :8])
    assert (logits < 0).any()


def test_the_ensemble_s_posterior_is_the_linear_meta_classifier_s() -> None:
    """The network that is exported: members, then ONE linear layer on what they say."""
    examples, members = make_examples(LABELS), [make_member(seed=seed).eval() for seed in (1, 2)]
    outputs = stacked_outputs([predict(member, ENCODERS, examples, BIAS) for member in members])
    dev = HeldOut(outputs, examples)
    meta, _ = train_meta(StackingSet(outputs, examples, TRAINED), MetaConfig(folds=2, epochs=20, seeds=(1,)), 1, dev)
    specs = tuple(replace(member.spec, name=f"member-{n}") for n, member in enumerate(members))
    ensemble = Ensemble(EnsembleSpec(tuple(ENCODERS.values()), specs, TRAINED, ()), members, meta).eval()
    batch = make_batch(examples, ENCODERS)
    with torch.no_grad():
        posterior = ensemble(batch.frames, batch.masks)[0]
        torch.testing.assert_close(posterior, torch.softmax(meta.linear(outputs)[:, :8] + BIAS, dim=1))
        mean = torch.from_numpy(np.mean([predict(m, ENCODERS, examples, BIAS)[0] for m in members], axis=0))
    assert not torch.allclose(posterior, mean, atol=0.05)


def test_the_soup_is_the_mean_of_its_runs() -> None:
    outputs = stacked_outputs([predict(make_member(), ENCODERS, make_examples(LABELS), BIAS)] * 2)
    config = MetaConfig(folds=2, epochs=3, seeds=(1, 2, 3))
    dev = HeldOut(outputs, make_examples(LABELS))
    runs = [train_meta(StackingSet(outputs, dev.examples, TRAINED), config, seed, dev)[0] for seed in config.seeds]
    before = [run.linear.weight.clone() for run in runs]
    mixed = soup(runs)
    with torch.no_grad():
        torch.testing.assert_close(mixed.linear.weight, torch.stack(before).mean(dim=0))
        torch.testing.assert_close(mixed(outputs)[0], torch.stack([run(outputs)[0] for run in runs]).mean(dim=0))
        assert not torch.allclose(runs[0](outputs)[0], runs[1](outputs)[0])
    assert all(torch.equal(run.linear.weight, weight) for run, weight in zip(runs, before, strict=True))


# Dead layers.


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.toml")), ids=lambda path: str(path.relative_to(RECIPES)))
def test_every_parameter_of_a_shipped_member_receives_gradient(path: Path) -> None:
    recipe = load_recipe(path)
    encoders = recipe.encoder_specs()
    frames = {n: np.ones((FUNCTIONALS_STEPS * e.stack, e.dim), np.float16) for n, e in encoders.items()}
    for spec in recipe.member_specs():
        torch.manual_seed(spec.seed)
        member, inputs = build_member(spec, encoders), {name: encoders[name] for name in spec.modalities}
        batch = make_batch(with_frames(make_examples(LABELS[:7]), frames), inputs)
        fused = member.fuse(batch.frames, batch.masks)
        loss = multitask_loss(*member.classify(fused.x), batch.labels, torch.ones(8), BIAS)
        if fused.views is not None:
            everything = torch.ones(fused.views.shape[:2], dtype=torch.bool)
            loss = loss + contrastive_loss(fused.views, everything, torch.arange(len(everything)), Contrast())
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        assert dead_parts(member) == set(), spec.name


def with_frames(examples: Examples, frames: Mapping[str, HalfFrames]) -> Examples:
    """The examples with frames of these shapes, of random values."""
    rng = np.random.default_rng(0)
    drawn = {n: [rng.standard_normal(f.shape).astype(np.float16) for _ in examples.ids] for n, f in frames.items()}
    return replace(examples, frames=drawn)


def dead_parts(member: Member) -> set[str]:
    """Parameters without gradient; queries, keys and values of an attention are looked at one by one.

    The biases of keys are left out: a softmax does not see what all its scores share.
    """
    dead = set()
    for name, parameter in member.named_parameters():
        assert parameter.grad is not None, name
        parts = parameter.grad.chunk(3) if ".qkv." in name else (parameter.grad,)
        seen = [float(part.abs().max()) > 1e-6 * float(parameter.grad.abs().max()) for part in parts]
        if ".qkv.bias" in name:
            seen[1] = True
        if not all(seen) or not parameter.grad.any():
            dead.add(name)
    return dead
