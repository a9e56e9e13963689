"""A member of the second family in a whole run, all its parts switched on, and what every kind of transfer makes of it."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from export.bundle import write_bundle
from model.bundle import read_bundle
from model.network.checkpoint import checkpoint_id, load_checkpoint
from model.network.cross_fusion import CrossFusion
from model.runtime import EnsembleRuntime
from model.spec import INTERACTION, Lineage
from tests.model.tiny import tiny_frames
from tests.train.transfer.conftest import World, silent
from train.run import train_ensemble
from train.transfer.adapt import adapt, adapted, hear
from train.transfer.fewshot import Plan, fewshot
from train.transfer.fewshot_report import FINETUNED, SCRATCH
from train.transfer.finetune import finetune
from train.transfer.source import Source, read_source
from train.transfer.target import Target, load_target

LIMIT = 1e-4
STATISTICS = {"stacks.functionals.mean", "stacks.functionals.scale"}
UNRATED = {"regressor.weight", "regressor.bias"}
"""Nobody has rated an attribute in the corpora here, so these have nothing to learn from."""


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guided member with shares and a contrast, of the corpus that all transfers begin with."""
    recipe = world.source().recipe
    full = {"name": "full", "modalities": ["functionals", "text"], "seed": 3, "family": "vga"}
    full |= {"attention": "vad-guided", "gates": "shares", "contrast": 6}
    plain = recipe.model_dump(exclude_unset=True) | {"members": [full], "fallbacks": ()}
    folder = tmp_path_factory.mktemp("guided") / "run"
    train_ensemble(type(recipe).model_validate(plain), world.data, world.cache, folder, 1, silent)
    return folder


@pytest.fixture(scope="module")
def tuned(world: World, run: Path) -> Path:
    source, out = read_source(run, ()), run.parent / "tuned"
    finetune(source, target_of(world, source), world.data, world.cache, out, silent)
    return out


def target_of(world: World, source: Source, more: str = "") -> Target:
    """With as many steps as it takes to be better than where they began, else weights stay as they were; without decay."""
    world.target(more)
    target = load_target(world.folder / "target.toml", source.recipe)
    stage1 = target.recipe.stage1.model_copy(update={"epochs": 10, "learning_rate": 1e-2, "weight_decay": 0.0})
    return Target(target.recipe.model_copy(update={"stage1": stage1}), target.transfer)


def full_of(run: Path) -> CrossFusion:
    (member,) = read_source(run, ()).members
    assert isinstance(member, CrossFusion)
    return member


def moved(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> set[str]:
    """Names of weights and statistics that differ."""
    assert after.keys() == before.keys()
    return {name for name, values in after.items() if not torch.equal(values, before[name])}


def learned(member: CrossFusion) -> set[str]:
    """Names of what training can move: lambda and both projections of the guides, shares and views included."""
    names = {name for name, _ in member.named_parameters()}
    guides = [f"crossings.0.{modality}.guide" for modality in ("functionals", "text")]
    parts = {f"{guide}.{part}" for guide in guides for part in ("weight", "query.weight", "query.bias", "key.weight")}
    parts |= {f"views.projections.{modality}.weight" for modality in ("functionals", "text")}
    assert names >= parts | {"gates.hidden.weight", "gates.scores.weight"}
    return names - UNRATED


def test_fine_tuning_moves_every_part_of_it(run: Path, tuned: Path) -> None:
    """Only the contrastive loss reads the views' projections: where they move, it was in the loss."""
    before, after = full_of(run), full_of(tuned)
    assert after.spec == before.spec
    assert (after.spec.attention, after.spec.gates, after.spec.contrast) == ("vad-guided", "shares", 6)
    assert moved(after.state_dict(), before.state_dict()) == learned(before) | STATISTICS


def test_a_fine_tuned_one_is_exported_with_its_lineage_and_computes_the_same(
    run: Path, tuned: Path, tmp_path: Path
) -> None:
    step = Lineage(checkpoint_id(run / "checkpoint"), "medusa-train finetune", "table", 4 * 4 * 2, 4)
    write_bundle(tuned / "checkpoint", tmp_path / "bundle")
    bundle, checkpoint = read_bundle(tmp_path / "bundle"), load_checkpoint(tuned / "checkpoint")
    assert checkpoint.lineage == bundle.manifest.lineage == (step,)
    parity = bundle.manifest.parity
    compared = {name for name in parity if name.startswith(("member full", "ensemble"))}
    assert len(compared) > 2
    assert {name: parity[name] for name in compared if not parity[name] <= LIMIT} == {}
    assert bundle.spec.members == checkpoint.spec.members
    assert bundle.spec.shared_by == ("functionals", "text", INTERACTION)
    items = tiny_frames(bundle.spec, np.random.default_rng(0), 2)
    wordless, spoken = (dict(p.modality_share) for p in EnsembleRuntime(bundle, threads=1).score(items))
    assert wordless == pytest.approx({"functionals": 1.0, "text": 0.0, INTERACTION: 0.0}, abs=1e-6)
    assert sum(spoken.values()) == pytest.approx(1.0, abs=1e-5)
    assert min(spoken.values()) > 0.0


def test_a_discriminator_moves_it(world: World, run: Path, tmp_path: Path) -> None:
    """Unlike training on the source's labels alone, which would end the same however much the discriminator counts."""
    source, before, found = read_source(run, ()), full_of(run), []
    for weight in (1.0, 5.0):
        target = target_of(world, source, f"weight = {weight}\n")
        heard = hear(source, target, world.data, world.cache, silent)
        (member,) = adapted(source, target, "dann", heard, tmp_path / str(weight), silent).ensemble.members
        found.append(member.state_dict())
    for weights in found:
        assert moved(weights, before.state_dict()) == learned(before)
    assert {"join.weight", "gates.hidden.weight"} <= moved(*found)


def test_normalising_moves_its_statistics_alone(world: World, run: Path, tmp_path: Path) -> None:
    source = read_source(run, ())
    adapt(source, target_of(world, source), "normalise", world.data, world.cache, tmp_path / "out", silent)
    (step,) = load_checkpoint(tmp_path / "out" / "checkpoint").lineage
    assert (step.source, step.command, step.labelled) == (source.id, "medusa-train adapt --method normalise", False)
    assert moved(full_of(tmp_path / "out").state_dict(), full_of(run).state_dict()) == STATISTICS


def test_few_labels_move_it_and_make_one_from_scratch(world: World, run: Path, tmp_path: Path) -> None:
    source = read_source(run, ())
    plan = Plan(shares=(0.5, 1.0), draws=1)
    fewshot(source, target_of(world, source), plan, world.data, world.cache, tmp_path, silent)
    results = json.loads((tmp_path / "fewshot.json").read_text())
    assert results["members"] == ["full"]
    assert [(row["share"], row["speakers"]) for row in results["budgets"]] == [(0.5, [3]), (1.0, [6])]
    for row in results["budgets"]:
        for system in (FINETUNED, SCRATCH):
            assert 0.0 <= row["systems"][system]["uar"]["value"] <= 1.0
    before = full_of(run)
    few = sorted((tmp_path / "members").glob("50-percent-*/*/full.stage1.safetensors"))
    tuned, fresh = (load_file(path) for path in few)
    assert moved(tuned, before.state_dict()) == learned(before) | STATISTICS
    assert {"stacks.text.mean", "gates.scores.weight"} <= moved(fresh, before.state_dict()), "nothing is the source's"
