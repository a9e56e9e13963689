"""A point of the few-shot curve as a run: the same members, their lineage, and confidence that no training clip flatters."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from export.bundle import write_bundle
from model.bundle import read_bundle
from model.network.checkpoint import load_checkpoint
from tests.train.transfer.conftest import TARGET, World, silent
from train.cli import app
from train.stacking import calibrated, member_outputs
from train.stages.meta import HeldOut
from train.transfer.begin import begin
from train.transfer.budgets import Budget
from train.transfer.fewshot import Plan, fewshot
from train.transfer.finetune import finetune, why_not_refit
from train.transfer.joining import soft_vote
from train.transfer.target import Target

BUDGET = Budget(0.34, 1)
GUESSING = "[transfer.self_training]\nrounds = 1\n"


def of_voice(world: World, folder: Path) -> Target:
    target = world.target(GUESSING, folder)
    recipe = target.recipe.model_copy(update={"members": world.source("voice").recipe.members, "fallbacks": ()})
    return Target(recipe, target.transfer)


@pytest.fixture(scope="module")
def spent(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("budget")
    finetune(
        world.source("voice"), of_voice(world, folder), world.data, world.cache, folder / "out", silent, budget=BUDGET
    )
    return folder / "out"


def test_its_members_are_those_of_the_curve(world: World, spent: Path, tmp_path: Path) -> None:
    """Guesses about what it has not bought included; the curve's test clips too."""
    plan = Plan((BUDGET.share,), BUDGET.draw + 1)
    fewshot(world.source("voice"), of_voice(world, tmp_path), plan, world.data, world.cache, tmp_path / "few", silent)
    (curve,) = json.loads((tmp_path / "few" / "fewshot.json").read_text())["budgets"]
    (evaluation,) = json.loads((spent / "report.json").read_text())["evaluations"].values()
    found = evaluation["systems"]["soft vote"]["uar"]["value"]
    assert curve["systems"]["fine-tuned from the source"]["by_draw"][BUDGET.draw] == pytest.approx(found)
    drawn = tmp_path / "few" / "members" / BUDGET.name / "finetuned"
    assert {path.name for path in drawn.glob("*.safetensors")} == {
        path.name for path in spent.glob("members/*.safetensors")
    }
    for path in drawn.glob("*.safetensors"):
        assert path.read_bytes() == (spent / "members" / path.name).read_bytes()


def test_its_lineage_names_the_budget_and_goes_into_the_bundle(spent: Path, tmp_path: Path) -> None:
    write_bundle(spent / "checkpoint", tmp_path / "bundle")
    (step,) = read_bundle(tmp_path / "bundle").manifest.lineage
    assert step.command == "medusa-train finetune --budget 0.34 --unit speakers --draw 1"
    assert (step.speakers, step.clips) == (2, 16), "of six labelled speakers, of four classes that the source knows"


def test_confidence_is_not_fitted_to_what_was_learned(world: World, spent: Path, tmp_path: Path) -> None:
    """Nobody was held out: it is of what members made of the clips before, and no meta-classifier is trained."""
    source, target = world.source("voice"), of_voice(world, tmp_path)
    prepared = begin(source, target, world.data, world.cache, silent, BUDGET).prepared
    assert not prepared.training.selects
    assert set(prepared.training.dev.ids) == set(prepared.training.train.ids)
    assert why_not_refit(source, target, prepared) == "no labelled speaker is held out to judge it by"
    checkpoint, temperatures = load_checkpoint(spent / "checkpoint"), []
    start = prepared.training.start
    assert start is not None
    before = source.members[0]
    for weights in (start.weights["voice"], checkpoint.members[0].state_dict()):
        before.load_state_dict(weights)
        outputs = member_outputs(target.recipe, (before,), prepared.training.dev, source.classes)
        held_out = HeldOut(outputs, prepared.training.dev)
        temperatures.append(calibrated(soft_vote(1), held_out, prepared.training.trained_classes).temperature)
    assert checkpoint.temperature == pytest.approx(temperatures[0], rel=1e-2)
    assert checkpoint.temperature != pytest.approx(temperatures[1], rel=1e-2)
    card = (spent / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "Nobody of the 2 labelled speakers was held out: nothing was selected" in card
    assert "before they learned them: temperature" in card
    results = json.loads((spent / "report.json").read_text())
    for text in (card, (spent / "report.html").read_text(encoding="utf-8"), json.dumps(checkpoint.training)):
        assert "calibrated on" not in text
        assert "development speakers, " not in text
    assert results["learning_curves"] == results["linear_fits"] == [], "no score of theirs is held out"
    (evaluation,) = results["evaluations"].values()
    assert not any("probe" in name for name in evaluation["systems"])
    assert checkpoint.prior_log_ratio == {}
    assert torch.equal(checkpoint.meta.linear.weight, soft_vote(1).linear.weight)


def test_the_command_takes_a_budget(world: World, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TARGET, encoding="utf-8")
    given = ["--run", world.run, "--config", tmp_path / "mine.toml", "--data", world.data, "--cache", world.cache]

    def invoke(*more: str) -> tuple[int, str]:
        out = ["--out", tmp_path / "out", "--members", "voice"]
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["finetune", *map(str, (*given, *out, *more))])
        return result.exit_code, result.output + result.stderr

    code, told = invoke("--budget", "0.5", "--unit", "clips", "--draw", "2")
    assert code == 0, told
    (step,) = load_checkpoint(tmp_path / "out" / "checkpoint").lineage
    assert step.command == "medusa-train finetune --budget 0.5 --unit clips --draw 2"
    for wrong, said in (
        (("--budget", "1.5"), "a share above 0 and at most 1"),
        (("--budget", "0.5", "--unit", "words"), "speakers, clips"),
        (("--draw", "1"), "give --budget too"),
    ):
        code, told = invoke(*wrong)
        assert (code, said in told) == (2, True), told
