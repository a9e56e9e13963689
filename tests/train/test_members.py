import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model.network.member import Member
from tests.train.synthetic import TRAINED, make_examples, make_recipe, make_training_set, optimizer_steps
from train.config import Recipe
from train.stages.members import ALL_SPEAKERS, Job, TrainingSet, draw_training, moments, train_member

LABELS = (*TRAINED, None) * 6
STAGE = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "mixup": 0.5}


@pytest.fixture(scope="module")
def data() -> TrainingSet:
    return make_training_set(make_examples(LABELS))


def job_of(recipe: Recipe, fold: int = ALL_SPEAKERS) -> Job:
    return Job(recipe.member_specs()[0], fold)


def weights(member: Member) -> torch.Tensor:
    return torch.cat([values.flatten() for values in member.state_dict().values()])


def steps_of(recipe: Recipe, data: TrainingSet, folder: Path, fold: int = ALL_SPEAKERS) -> int:
    with optimizer_steps() as steps:
        train_member(job_of(recipe, fold), recipe, data, folder)
    return len(steps)


def test_a_finished_member_is_read_and_not_trained_again(data: TrainingSet, tmp_path: Path) -> None:
    recipe = make_recipe()
    first = train_member(job_of(recipe), recipe, data, tmp_path)
    with optimizer_steps() as steps:
        second = train_member(job_of(recipe), recipe, data, tmp_path)
    assert steps == []
    assert torch.equal(weights(first), weights(second))
    assert not second.training


def test_a_run_killed_between_the_stages_ends_in_the_same_weights(data: TrainingSet, tmp_path: Path) -> None:
    recipe = make_recipe()
    whole = train_member(job_of(recipe), recipe, data, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for path in (tmp_path / "killed").glob("*.stage2.*"):
        path.unlink()
    with optimizer_steps() as steps:
        resumed = train_member(job_of(recipe), recipe, data, tmp_path / "killed")
    stage2 = json.loads((tmp_path / "killed" / "tiny.stage2.json").read_text())
    assert len(steps) == stage2["steps"] > 0
    assert torch.equal(weights(whole), weights(resumed))


def test_a_seed_decides_the_weights(data: TrainingSet, tmp_path: Path) -> None:
    recipe = make_recipe()
    torch.manual_seed(123)  # what ran before must not matter
    first = train_member(job_of(recipe), recipe, data, tmp_path / "first")
    torch.manual_seed(321)
    second = train_member(job_of(recipe), recipe, data, tmp_path / "second")
    other = make_recipe(members=[{"name": "tiny", "modalities": ["prosody", "text"], "seed": 6}])
    third = train_member(job_of(other), other, data, tmp_path / "third")
    assert torch.equal(weights(first), weights(second))
    assert not torch.allclose(weights(first), weights(third))


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ({"stage1": STAGE | {"learning_rate": 2e-3}}, {"stage1", "stage2"}),
        ({"stage2": STAGE | {"learning_rate": 2e-3}}, {"stage2"}),
        (
            {"member_defaults": {"dim": 8, "heads": 2, "layers": 1, "feed_forward": 14, "dropout": 0.1}},
            {"stage1", "stage2"},
        ),
        ({"meta": {"folds": 2, "epochs": 9, "seeds": [3]}}, set()),
        ({"name": "renamed"}, set()),
        ({"stage2": STAGE | {"accumulate": 2}}, {"stage2"}),
        ({"stage2": STAGE | {"precision": "bfloat16"}}, {"stage2"}),
        ({"stage1": STAGE | {"patience": 1}}, {"stage1", "stage2"}),
        ({"stage1": STAGE | {"accumulate": 1, "precision": "float32", "patience": None}}, set()),
        ({"compute": {"device": "auto", "resume_every": 3}}, set()),
        ({"meta": {"folds": 2, "epochs": 2, "seeds": [1, 2], "soup": "greedy"}}, set()),
    ],
)
def test_a_changed_recipe_trains_what_it_changes(
    data: TrainingSet, tmp_path: Path, change: dict[str, object], stages: set[str]
) -> None:
    recipe = make_recipe()
    train_member(job_of(recipe), recipe, data, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    changed = make_recipe(**change)
    train_member(job_of(changed), changed, data, tmp_path)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert {name.split(".")[1] for name in before if before[name] != after[name]} == stages


def test_stage_2_starts_from_the_best_of_stage_1(data: TrainingSet, tmp_path: Path) -> None:
    still = STAGE | {"learning_rate": 1e-9, "weight_decay": 0.0}
    recipe = make_recipe(stage1=STAGE | {"epochs": 3}, stage2=still)
    member = train_member(job_of(recipe), recipe, data, tmp_path)
    stage1 = torch.cat([values.flatten() for values in load_file(tmp_path / "tiny.stage1.safetensors").values()])
    found = torch.cat([member.state_dict()[name].flatten() for name in load_file(tmp_path / "tiny.stage1.safetensors")])
    torch.testing.assert_close(found, stage1, atol=1e-6, rtol=0)


def test_members_of_a_fold_lie_beside_each_other(data: TrainingSet, tmp_path: Path) -> None:
    recipe = make_recipe()
    for fold in (ALL_SPEAKERS, 0, 1):
        assert steps_of(recipe, data, tmp_path, fold) > 0
    for fold in (ALL_SPEAKERS, 0, 1):
        assert steps_of(recipe, data, tmp_path, fold) == 0
    assert len(list(tmp_path.glob("*.stage2.safetensors"))) == 3


def test_statistics_come_from_the_member_s_own_speakers(data: TrainingSet, tmp_path: Path) -> None:
    recipe = make_recipe()
    for fold in (0, ALL_SPEAKERS):
        member = train_member(job_of(recipe, fold), recipe, data, tmp_path)
        rows = [row for row in range(len(data.train)) if data.folds[row] != fold]
        frames = torch.cat([torch.from_numpy(data.train.frames["prosody"][row]).float() for row in rows])
        torch.testing.assert_close(member.stacks["prosody"].mean, frames.mean(dim=0), atol=1e-5, rtol=1e-4)
        scale = 1 / frames.std(dim=0, correction=0)
        torch.testing.assert_close(member.stacks["prosody"].scale, scale, atol=1e-5, rtol=1e-4)


def test_a_recipe_without_texts_trains_on_the_clips_own_words(data: TrainingSet, tmp_path: Path) -> None:
    recipe = make_recipe(text=None)
    assert steps_of(recipe, replace(data, bank=None), tmp_path) > 0


def test_degraded_copies_are_trained_on(data: TrainingSet, tmp_path: Path) -> None:
    recipe = make_recipe()
    louder = {name: [rows * 3 for rows in frames] for name, frames in data.train.frames.items()}
    both = replace(data, copies=(data.train, replace(data.train, frames=louder)))
    plain, mixed = (train_member(job_of(recipe), recipe, d, tmp_path / str(len(d.copies))) for d in (data, both))
    assert not torch.allclose(weights(plain), weights(mixed))
    narrow, wide = (member.state_dict()["stacks.prosody.scale"] for member in (mixed, plain))
    assert (narrow < 0.6 * wide).all()


def test_an_epoch_mixes_copies_and_texts_anew(data: TrainingSet) -> None:
    recipe, rng = make_recipe(), np.random.default_rng(0)
    louder = {name: [rows * 3 for rows in frames] for name, frames in data.train.frames.items()}
    copies = (data.train, replace(data.train, frames=louder))
    first, second = (draw_training(recipe, data, copies, rng) for _ in range(2))
    for drawn in (first, second):
        assert drawn.ids == data.train.ids
        clean = [a is b for a, b in zip(drawn.frames["prosody"], data.train.frames["prosody"], strict=True)]
        assert 0.2 < np.mean(clean) < 0.8
    assert not np.array_equal(first.targets, second.targets)


def test_moments_are_those_of_all_frames_together() -> None:
    """One utterance in memory at a time; also far from zero, where a difference of squares loses digits."""
    rng = np.random.default_rng(0)
    rows = [(40.0 + 0.25 * rng.standard_normal((n, 6))).astype(np.float16) for n in (1, 30, 7, 200)]
    mean, deviation = moments(rows)
    every = np.concatenate(rows).astype(np.float64)
    np.testing.assert_allclose(mean, every.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(deviation, every.std(axis=0), rtol=1e-5)
    assert mean.dtype == deviation.dtype == np.float32
    assert moments([np.full((3, 2), 1.5, np.float16)])[1].tolist() == [0, 0]
