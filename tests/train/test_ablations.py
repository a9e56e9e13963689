"""That each ablation takes away what it says, and nothing else."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model.network.deepser import DeepSER
from tests.train.synthetic import ENCODERS, RECIPES, TRAINED, make_examples, make_member, make_recipe, make_training_set
from train.ablations import (
    ABLATIONS,
    chosen_members,
    ensemble_sizes,
    late_fusion,
    no_mixup,
    no_multitask,
    no_stage_2,
    one_hot_targets,
)
from train.config import AblationConfig, Recipe, load_recipe, plain_recipe
from train.errors import RecipeError
from train.execution import Execution
from train.loop import StageData, Step
from train.stages.members import ALL_SPEAKERS, Job, draw_training, train_member
from train.stored_stack import stack_key

SHIPPED = sorted(RECIPES.rglob("*.toml"))


class NotingGenerator(np.random.Generator):
    """Notes every draw of MixUp's shares."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))
        self.mixed = 0

    def beta(self, *args: Any, **kwargs: Any) -> Any:
        self.mixed += 1
        return super().beta(*args, **kwargs)


def step_of(recipe: Recipe, member: DeepSER) -> Step:
    weights = torch.ones(8)
    data = StageData(lambda rng: make_examples(TRAINED), None, weights, TRAINED, recipe.objective.terms("deepser"))
    return Step(member, ENCODERS, data, recipe.stage1, Execution())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("ablation", ABLATIONS, ids=lambda ablation: ablation.name)
def test_every_ablation_is_a_recipe_of_its_own(path: Path, ablation: object) -> None:
    recipe = load_recipe(path)
    for found in ABLATIONS:
        if found is ablation:
            changed = found.change(recipe)
            assert changed != recipe
            assert found.change(changed) == changed, "taken away twice is taken away"
            Recipe.model_validate(changed.model_dump())
            assert changed.data == recipe.data
            assert changed.encoders == recipe.encoders


def test_the_papers_figures() -> None:
    assert {a.name: a.paper for a in ABLATIONS} == {
        "one-hot targets": -0.082,
        "late fusion": -0.063,
        "no mixup": -0.029,
        "no multitask": -0.022,
        "no stage 2": -0.012,
    }


def test_one_hot_targets_are_one_hot_but_for_ties() -> None:
    labels = [*TRAINED * 10, None, None]
    data, recipe = make_training_set(make_examples(labels)), make_recipe()
    soft, hard = (
        draw_training(changed, data, data.copies, np.random.default_rng(3))
        for changed in (recipe, one_hot_targets(recipe))
    )
    tied = soft.dominant < 0
    assert 0 < tied.sum() < len(soft)
    assert soft.targets[~tied].max() < 1.0
    assert set(np.unique(hard.targets[~tied])) == {0.0, 1.0}
    np.testing.assert_array_equal(hard.targets[~tied].argmax(axis=1), soft.targets[~tied].argmax(axis=1))
    np.testing.assert_array_equal(hard.targets[tied], soft.targets[tied])
    np.testing.assert_array_equal(hard.dominant, soft.dominant)
    np.testing.assert_array_equal(hard.attributes, soft.attributes)


def test_without_mixup_nothing_is_ever_mixed() -> None:
    recipe = make_recipe()
    counts = {}
    for name, changed in (("full", recipe), ("no mixup", no_mixup(recipe))):
        step, rng = step_of(changed, make_member()), NotingGenerator()
        for seed in range(40):
            step.gradients([make_examples(TRAINED, seed)], rng)
        counts[name] = rng.mixed
    assert counts["full"] == pytest.approx(20, abs=10)
    assert counts["no mixup"] == 0
    assert no_mixup(recipe).stage2.mixup == 0.0 < recipe.stage2.mixup


def test_without_multitask_nothing_is_learned_of_attributes() -> None:
    recipe, examples = make_recipe(), make_examples(TRAINED * 4)
    assert (~np.isnan(examples.attributes)).any()
    learned = {}
    for name, changed in (("full", recipe), ("no multitask", no_multitask(recipe))):
        member = make_member()
        step_of(no_mixup(changed), member).gradients([examples], np.random.default_rng(0))
        assert member.classifier.weight.grad is not None
        assert member.classifier.weight.grad.abs().max() > 0
        assert member.regressor.weight.grad is not None
        learned[name] = float(member.regressor.weight.grad.abs().max())
    assert learned["full"] > 0
    assert learned["no multitask"] == 0


def test_late_fusion_has_no_fusion_and_keeps_every_size() -> None:
    for path in SHIPPED:
        recipe = load_recipe(path)
        for before, after in zip(recipe.member_specs(), late_fusion(recipe).member_specs(), strict=True):
            fuses = before.family == "deepser" and before.attention == "plain"
            assert asdict(before) | {"fusion": "late" if fuses else "deep"} == asdict(after)
    member = DeepSER(late_fusion(make_recipe()).member_specs()[0], ENCODERS)
    assert not [name for name, _ in member.named_parameters() if name.startswith("fusions")]


def test_a_member_that_asks_for_its_own_fusion_loses_it_too() -> None:
    own = {"name": "own", "modalities": ["prosody", "text"], "seed": 1, "fusion": "deep"}
    assert [spec.fusion for spec in late_fusion(make_recipe(members=[own])).member_specs()] == ["late"]


def test_without_stage_2_a_member_is_what_stage_1_left(tmp_path: Path) -> None:
    data, recipe = make_training_set(make_examples(TRAINED * 5)), make_recipe()
    job = Job(recipe.member_specs()[0], ALL_SPEAKERS)
    full = train_member(job, recipe, data, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    shorter = train_member(job, no_stage_2(recipe), data, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before, "stage 1 is not trained again"
    left = load_file(tmp_path / "tiny.stage1.safetensors")
    for name, values in shorter.state_dict().items():
        torch.testing.assert_close(values, left[name], rtol=0, atol=0)
    assert not torch.equal(full.classifier.weight, shorter.classifier.weight)


@pytest.mark.parametrize("ablation", [a for a in ABLATIONS if a.is_trained], ids=lambda ablation: ablation.name)
def test_a_change_trains_other_weights_under_another_key(ablation: object, tmp_path: Path) -> None:
    """In one folder on purpose: weights of the full recipe must not be taken for those of the other."""
    data, recipe = make_training_set(make_examples(TRAINED * 5)), make_recipe()
    (change,) = (a.change for a in ABLATIONS if a is ablation)
    weights = []
    for changed in (recipe, change(recipe)):
        job = Job(changed.member_specs()[0], ALL_SPEAKERS)
        weights.append(train_member(job, changed, data, tmp_path).state_dict()["encs.text.w1.weight"])
    assert not torch.equal(*weights)


def test_only_stage_2_can_be_left_out() -> None:
    stage = {"epochs": 0, "batch_size": 8, "learning_rate": 1e-3}
    with pytest.raises(ValueError, match=r"stage1.epochs is 0: only stage 2 can be left out"):
        make_recipe(stage1=stage)


def test_what_changes_nothing_is_said_to() -> None:
    single = {"name": "words", "modalities": ["text"], "seed": 1}
    recipe = make_recipe(members=[single, {"name": "both", "modalities": ["prosody", "text"], "seed": 2}])
    rated = make_training_set(make_examples(TRAINED * 3))
    unrated = make_examples(TRAINED * 3)
    unrated.attributes[:] = np.nan
    by_name = {ablation.name: ablation for ablation in ABLATIONS}
    assert "nothing to fuse" in by_name["late fusion"].why_not(recipe, rated, "words")
    assert by_name["late fusion"].why_not(recipe, rated, "both") == ""
    assert "no training clip is rated" in by_name["no multitask"].why_not(recipe, make_training_set(unrated), "both")
    assert by_name["no multitask"].why_not(recipe, rated, "both") == ""
    assert "without it already" in by_name["no mixup"].why_not(no_mixup(recipe), rated, "both")


@pytest.mark.parametrize("name", ["medusa", "small"])
def test_the_members_of_the_papers_table_2_are_compared(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.toml")
    numbers = {member.name: number for number, member in enumerate(recipe.members, 1)}  # table 1's
    assert [numbers[member] for member in chosen_members(recipe)] == [2, 8, 9, 13]
    assert chosen_members(recipe, ("wavlm-modernbert",)) == ("wavlm-modernbert",), "what is asked for comes first"


def test_naming_compared_members_makes_no_run_another(tmp_path: Path) -> None:
    """No dump has them, so no key has; a name that no member has is an error."""
    plain = make_recipe()
    named = Recipe.model_validate(plain.model_dump() | {"ablation": {"members": [plain.members[0].name]}})
    assert named.ablation.members
    assert named.model_dump(mode="json") == plain.model_dump(mode="json")
    assert plain_recipe(named) == plain_recipe(plain)
    with pytest.raises(ValueError, match=r"ablation.members has \['wavlm'\]: the recipe's members are \['tiny'"):
        Recipe.model_validate(plain.model_dump() | {"ablation": {"members": ["wavlm"]}})


def test_the_exponent_of_class_weights_is_a_recipe_s(tmp_path: Path) -> None:
    """At its default it is in no key; another one trains stage 1 anew, and stage 3 has it from the members."""
    data, recipe = make_training_set(make_examples(TRAINED * 5 + ("angry",) * 20)), make_recipe()
    flat = recipe.model_copy(update={"objective": recipe.objective.model_copy(update={"class_weight": 0.0})})
    job = Job(recipe.member_specs()[0], ALL_SPEAKERS)
    weights = [train_member(job, each, data, tmp_path).state_dict()["encs.text.w1.weight"] for each in (recipe, flat)]
    assert not torch.equal(*weights)
    assert stack_key(recipe, ["member"]) == stack_key(flat, ["member"])


def test_members_of_different_modalities_are_compared() -> None:
    medusa = load_recipe(RECIPES / "medusa.toml").model_copy(update={"ablation": AblationConfig()})
    chosen = chosen_members(medusa)
    sets = {frozenset(m.modalities) for m in medusa.members if m.name in chosen}
    assert len(chosen) == len(sets) == 4
    kinds = [("one", ["text"]), ("both", ["prosody", "text"]), ("again", ["text", "prosody"]), ("other", ["prosody"])]
    recipe = make_recipe(
        members=[{"name": name, "modalities": read, "seed": seed} for seed, (name, read) in enumerate(kinds)]
    )
    assert chosen_members(recipe) == ("both", "one", "other"), "members of several modalities first, and each set once"
    assert chosen_members(recipe, ("again", "one", "again")) == ("again", "one")
    with pytest.raises(RecipeError, match="there are no members wavlm: the recipe has one, both, again, other"):
        chosen_members(recipe, ("one", "wavlm"))


@pytest.mark.parametrize(
    ("members", "sizes"), [(14, (14, 7, 5)), (8, (8, 7, 5)), (7, (7, 4, 3)), (5, (5, 3, 2)), (2, (2, 1)), (1, (1,))]
)
def test_sizes_are_the_papers_or_in_its_proportion(members: int, sizes: tuple[int, ...]) -> None:
    assert ensemble_sizes(members) == sizes
