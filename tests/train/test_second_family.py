"""Members of both families in one recipe: what is trained, by which loss, and what names it."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.network.cross_fusion import CrossFusion
from model.network.member import Member, build_member
from tests.train.synthetic import ENCODERS, TRAINED, make_examples, make_member, make_recipe, make_training_set
from train import dataset
from train.ablations import ABLATIONS, late_fusion, no_multitask
from train.config import MemberConfig, Recipe, StageConfig
from train.dataset import Examples
from train.execution import Execution
from train.loop import StageData, Step, class_bias, predict, train_stage
from train.losses import Terms, multitask_loss
from train.micl import Contrast, contrastive_loss
from train.stages.members import Job, last_key, train_member

LABELS = (*TRAINED, None) * 6
CONFIG = StageConfig(epochs=2, batch_size=8, learning_rate=1e-3, mixup=0.0)
FULL: dict[str, Any] = {"family": "vga", "attention": "vad-guided", "gates": "shares", "contrast": 6}


def mixed_recipe(**sections: Any) -> Recipe:
    """A DeepSER, a full member of the second family, and a DeepSER with guided attention and a contrast."""
    own = {"modalities": ["prosody", "text"]}
    members = [
        {"name": "deep", "seed": 5, **own},
        {"name": "full", "seed": 6, **own, **FULL},
        {"name": "guided", "seed": 7, **own, "attention": "vad-guided", "contrast": 4},
    ]
    return make_recipe(**{"members": members, **sections})


def full_member(seed: int = 1, **changes: Any) -> Member:
    torch.manual_seed(seed)
    spec = replace(make_member().spec, **{**FULL, **changes})
    return build_member(spec, ENCODERS)


def data_of(examples: Examples, contrast: Contrast | None = None) -> StageData:
    return StageData(lambda rng: examples, None, torch.ones(8), TRAINED, Terms(1.0, 0.3), contrast)


def step_of(member: Member, examples: Examples, contrast: Contrast | None, config: StageConfig = CONFIG) -> Step:
    return Step(member, ENCODERS, data_of(examples, contrast), config, Execution())


def gradient(member: Member) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in member.parameters() if p.grad is not None])


def test_the_loss_is_the_sum_of_its_three_terms() -> None:
    """1.0 cross-entropy + 0.3 squared error where it is rated + 0.2 MICL, as the recipe's defaults have it."""
    examples, member = make_examples(LABELS), full_member()
    objective = mixed_recipe().objective
    assert (objective.terms("vga"), objective.contrast.settings) == (Terms(1.0, 0.3), Contrast(0.2, 0.07))
    assert objective.terms("deepser") == Terms(1.5, 0.4)
    found = step_of(member, examples, objective.contrast.settings).gradients([examples], np.random.default_rng(0))
    batch = dataset.make_batch(examples, {n: ENCODERS[n] for n in member.spec.modalities})
    with torch.no_grad():
        fused = member.fuse(batch.frames, batch.masks)
        said = member.classify(fused.x)
        bias, ones = class_bias(TRAINED), torch.ones(8)
        apart = [multitask_loss(*said, batch.labels, ones, bias, terms=Terms(*w)) for w in ((1.0, 0.0), (0.0, 1.0))]
        assert fused.views is not None
        present = torch.ones(len(examples), 2, dtype=torch.bool)
        micl = contrastive_loss(fused.views, present, torch.from_numpy(examples.dominant), Contrast())
    assert min(*map(float, apart), float(micl)) > 0.01
    assert found == pytest.approx(float(apart[0] + 0.3 * apart[1] + 0.2 * micl), rel=1e-4)


def test_a_batch_in_several_passes_has_the_gradient_of_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views are compared across passes, each with its own label; mixed batches compare the views of what was heard."""
    examples = make_examples(LABELS)
    for row in (3, 11, 17):
        examples.frames["prosody"][row] = np.tile(examples.frames["prosody"][row], (40, 1))  # type: ignore[index]
    for config in (CONFIG, CONFIG.model_copy(update={"mixup": 1.0})):
        found = []
        for cost in (0, 10**9):
            monkeypatch.setattr(dataset, "_PASS_STEPS", cost)
            member = full_member()
            step_of(member, examples, Contrast(), config).gradients([examples], np.random.default_rng(0))
            found.append(gradient(member))
        assert found[0].abs().max() > 0.01
        torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-4)


def test_a_transcript_without_words_is_compared_with_nothing() -> None:
    """The view of a modality that is not there would be the projection's bias."""
    examples = make_examples(LABELS)
    examples.frames["text"][4] = examples.frames["text"][4][:0]  # type: ignore[index]
    rest = examples.subset([row for row in range(len(examples)) if row != 4])
    losses = []
    for part in (examples, rest):
        terms = [
            step_of(full_member(), part, c).gradients([part], np.random.default_rng(0)) for c in (Contrast(), None)
        ]
        losses.append(terms[0] - terms[1])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_batch_is_contrasted_by_its_share_of_a_step() -> None:
    examples = make_examples(LABELS)
    parts = [examples.subset(range(10)), examples.subset(range(10, 30))]
    alone = []
    for part in parts:
        terms = [
            step_of(full_member(), part, c).gradients([part], np.random.default_rng(0)) for c in (Contrast(), None)
        ]
        alone.append(terms[0] - terms[1])
    together = [
        step_of(full_member(), examples, c).gradients(parts, np.random.default_rng(0)) for c in (Contrast(), None)
    ]
    assert together[0] - together[1] == pytest.approx((alone[0] + 2 * alone[1]) / 3, rel=1e-3)


def test_members_of_the_second_family_learn() -> None:
    examples, dev = make_examples(LABELS, signal=2.0), make_examples(TRAINED * 6, seed=3, signal=2.0)
    member, config = full_member(dropout=0.1), CONFIG.model_copy(update={"epochs": 20, "learning_rate": 1e-2})
    history = train_stage(member, ENCODERS, replace(data_of(examples, Contrast()), dev=dev), config, seed=0)
    assert history.rows[-1]["loss"] < 0.7 * history.rows[0]["loss"]
    assert max(row["dev_macro_f1"] for row in history.rows) > 0.6


def test_a_recipe_trains_both_families_and_reads_them_back(tmp_path: Path) -> None:
    recipe, data = mixed_recipe(), make_training_set(make_examples(LABELS))
    for spec in recipe.member_specs():
        job = Job(spec, 0)
        trained = train_member(job, recipe, data, tmp_path)
        assert isinstance(trained, CrossFusion) == (spec.family == "vga")
        again = train_member(job, recipe, data, tmp_path, lambda *row: pytest.fail("trained again"))
        for name, values in trained.state_dict().items():
            assert torch.equal(values, again.state_dict()[name]), name
        ours, theirs = (predict(m, ENCODERS, data.dev, class_bias(TRAINED))[0] for m in (trained, again))
        np.testing.assert_array_equal(ours, theirs)


def test_a_member_is_named_by_what_decides_its_weights_alone() -> None:
    """Old members keep their keys: new switches count only where a member reads them."""
    recipe = mixed_recipe()
    deep, full, guided = (Job(spec, 0) for spec in recipe.member_specs())
    other = mixed_recipe(objective={"vga": {"attribute_weight": 0.1}, "contrast": {"temperature": 0.1}})
    contrast = mixed_recipe(objective={"contrast": {"temperature": 0.1}})
    for changed, job, is_other in (
        (other, deep, False),
        (other, full, True),
        (contrast, full, True),
        (contrast, guided, True),
        (mixed_recipe(objective={"vga": {"attribute_weight": 0.1}}), guided, False),
        (mixed_recipe(objective={"cross_entropy_weight": 1.0}), deep, True),
    ):
        assert (last_key(job, changed, "data") != last_key(job, recipe, "data")) == is_other
    keys = {last_key(Job(replace(full.member, **{n: v}), 0), recipe, "data") for n, v in _plain().items()}
    assert len(keys | {last_key(full, recipe, "data")}) == 1 + len(_plain())


def _plain() -> dict[str, Any]:
    return {"attention": "plain", "gates": "free", "contrast": 5}


def test_sizes_of_the_second_family_may_stand_in_the_defaults() -> None:
    defaults = make_recipe().member_defaults.model_dump() | {"family": "vga", "gates": "shares"}
    members = [{"name": "a", "modalities": ["prosody", "text"], "seed": 1, "attention": "vad-guided"}]
    (spec,) = make_recipe(member_defaults=defaults, members=members).member_specs()
    assert (spec.family, spec.gates, spec.attention, spec.contrast) == ("vga", "shares", "vad-guided", 0)
    assert set(asdict(spec)) - {"name"} == set(MemberConfig.model_fields) - {"name"}


def test_what_is_taken_away_from_a_mixed_recipe() -> None:
    recipe, data = mixed_recipe(), make_training_set(make_examples(LABELS))
    late = {spec.name: spec.fusion for spec in late_fusion(recipe).member_specs()}
    assert late == {"deep": "late", "full": "deep", "guided": "deep"}
    objective = no_multitask(recipe).objective
    assert (objective.terms("deepser").attributes, objective.terms("vga").attributes) == (0.0, 0.0)
    assert objective.terms("vga").cross_entropy == 1.0
    for ablation in ABLATIONS:
        reason = ablation.why_not(recipe, data, "full")
        assert ("family 'vga'" in reason) == (ablation.change is late_fusion)
        assert ablation.change(recipe).member_specs()
