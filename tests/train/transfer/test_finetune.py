"""Whole transfers with labels, from a run to another corpus: what is begun with, trained, told, exported and served."""

import copy
import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from export.bundle import write_bundle
from model.bundle import read_bundle
from model.labels import CLASSES
from model.network.checkpoint import checkpoint_id, load_checkpoint
from model.runtime import EnsembleRuntime
from model.spec import Lineage
from tests.train.tiny_run import tiny_recipe
from tests.train.transfer.conftest import SPEAKERS, TARGET, World, silent, with_data, write_target
from train.acquaintance import SPEAKERS_FILE, Acquaintance
from train.calibration import fit_prior_ratio
from train.cli import app
from train.config import RECIPE_FILE
from train.dataset import tensors
from train.errors import LeakageError, RecipeError, RunError
from train.loop import class_bias, predict
from train.metrics import soft_cross_entropy
from train.prepare import ALONE, ONE_SIDED, View, prepare
from train.transfer.adapt import adapt, adapted, hear
from train.transfer.begin import begin
from train.transfer.fewshot_report import FINETUNED, SCRATCH
from train.transfer.finetune import finetune
from train.transfer.source import UNTOUCHED, read_source, with_weights
from train.transfer.target import Target, load_target


@pytest.fixture(scope="module")
def tuned(world: World) -> Path:
    out = world.folder / "tuned"
    finetune(world.source(), world.target(), world.data, world.cache, out, silent)
    return out


def test_a_run_can_be_begun_with(world: World) -> None:
    """Its recipe comes back whole, what no key holds included."""
    source = world.source()
    recipe = tiny_recipe(world.folder / "text")
    assert source.recipe.member_specs() == recipe.member_specs()
    assert source.recipe.encoders["text"].licence == "MIT"
    assert source.recipe.encoders["text"].supervised_on == ("iemocap",)
    assert source.id == checkpoint_id(world.run / "checkpoint")
    assert source.id.startswith("tiny-")
    assert [member.spec.name for member in world.source("words").members] == ["words"]
    assert world.source("words").meta is None
    with pytest.raises(RunError, match="has no members none: it has voice, words"):
        world.source("none")


def test_a_run_without_its_recipe_is_told_what_to_name(world: World, tmp_path: Path) -> None:
    old = Path(shutil.copytree(world.run, tmp_path / "old"))
    (old / RECIPE_FILE).unlink()
    with pytest.raises(RunError, match="name it with --recipe"):
        read_source(old)
    with pytest.raises(RunError, match=r"the recipe is not that of .*its members are"):
        read_source(old, recipe_file=Path(__file__).parents[3] / "recipes" / "default.toml")
    with pytest.raises(RunError, match="finish a run first"):
        read_source(tmp_path)


def test_no_step_is_the_source_itself(world: World, tmp_path: Path) -> None:
    """Statistics, meta-classifier and weights are the source's: so are the posteriors, but for the temperature."""
    target = world.target('statistics = "source"\nmeta = "keep"\n', tmp_path)
    recipe = target.recipe.model_copy(update={"stage1": target.recipe.stage1.model_copy(update={"epochs": 0})})
    target = Target(recipe, target.transfer)
    finetune(world.source(), target, world.data, world.cache, tmp_path / "out", silent)
    ours, theirs = load_checkpoint(tmp_path / "out" / "checkpoint"), load_checkpoint(world.run / "checkpoint")
    assert torch.equal(ours.meta.linear.weight, theirs.meta.linear.weight)
    begun = begin(world.source(), target, world.data, world.cache, silent).prepared
    test = begun.test["table"]
    for one, other in zip(ours.members, theirs.members, strict=True):
        for name, values in one.state_dict().items():
            torch.testing.assert_close(values, other.state_dict()[name], atol=1e-6, rtol=0)
    with torch.no_grad():
        both = [found.ensemble() for found in (ours, theirs)]
        for ensemble in both:
            ensemble.temperature.fill_(1.0)
        one, other = (ensemble(*tensors(test.frames, recipe.encoder_specs()))[0] for ensemble in both)
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_a_transfer_is_of_the_shared_classes_of_unseen_speakers(world: World, tuned: Path) -> None:
    results = json.loads((tuned / "report.json").read_text())
    (evaluation,) = results["evaluations"].values()
    assert UNTOUCHED in evaluation["systems"]
    assert UNTOUCHED in evaluation["uar_gain_of_soup"]
    assert evaluation["compared_alike"] == {f"{UNTOUCHED}, {way}": f"soup, {way}" for way in (ALONE, ONE_SIDED)}
    systems, gains = evaluation["systems"], evaluation["uar_gain_of_soup"]
    for theirs, ours in evaluation["compared_alike"].items():
        gain = systems[ours]["uar"]["value"] - systems[theirs]["uar"]["value"]
        assert gains[theirs]["value"] == pytest.approx(gain)
    assert "the soup hears them so too" in (tuned / "MODEL_CARD.md").read_text()
    assert "the soup hears them so too" in (tuned / "report.html").read_text()
    assert evaluation["speakers"] == 2
    assert evaluation["clips"] == 2 * 4 * 2
    assert results["dropped"]["table"] == {"class that the source was not trained on": 8 * 2}
    checkpoint, source = load_checkpoint(tuned / "checkpoint"), load_checkpoint(world.run / "checkpoint")
    assert checkpoint.spec.trained_classes == source.spec.trained_classes
    curves = {(row["member"], row["fold"]) for row in results["learning_curves"]}
    assert {("voice", None), ("voice", 0), ("voice", 1)} <= curves
    assert "licence: ours; what it began with" in (tuned / "MODEL_CARD.md").read_text().replace(
        "Licence of the data", "licence"
    )


def test_fine_tuning_learns_from_the_labels(world: World, tmp_path: Path) -> None:
    """More than the target's statistics, which need none: beside members that have these alone, on speakers unseen."""
    source, target = world.source("voice"), world.target('meta = "keep"\n', tmp_path)
    stage1 = target.recipe.stage1.model_copy(update={"epochs": 12, "learning_rate": 5e-3})
    changed = {"members": source.recipe.members, "fallbacks": (), "stage1": stage1}
    target = Target(target.recipe.model_copy(update=changed), target.transfer)
    finetune(source, target, world.data, world.cache, tmp_path / "out", silent)
    (tuned,) = load_checkpoint(tmp_path / "out" / "checkpoint").members
    prepared = begin(source, target, world.data, world.cache, silent).prepared
    assert prepared.training.start is not None
    begun = with_weights(tuned, prepared.training.start.weights["voice"], source.recipe)
    moved = {name for name, values in tuned.named_parameters() if not values.equal(begun.get_parameter(name))}
    assert {"classifier.weight", "classifier.bias"} < moved
    encoders, bias = source.recipe.encoder_specs(), class_bias(source.classes)
    for heard in (prepared.training.train, prepared.test["table"]):
        was, now = (predict(member, encoders, heard, bias)[0] for member in (begun, tuned))
        assert soft_cross_entropy(heard.targets, now) < 0.75 * soft_cross_entropy(heard.targets, was)


def test_a_finished_transfer_is_not_done_again(world: World, tuned: Path) -> None:
    kept = {
        path: path.stat().st_mtime_ns for path in tuned.rglob("members/*.safetensors") if "checkpoint" not in path.parts
    }
    before = (tuned / "report.json").read_bytes()
    finetune(world.source(), world.target(), world.data, world.cache, tuned, silent)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (tuned / "report.json").read_bytes() == before


def test_its_lineage_goes_from_the_run_into_the_bundle_and_the_card(world: World, tuned: Path, tmp_path: Path) -> None:
    """And what it has become is what a runtime serves."""
    first = Lineage(checkpoint_id(world.run / "checkpoint"), "medusa-train finetune", "table", 4 * 4 * 2, 4)
    assert load_checkpoint(tuned / "checkpoint").lineage == (first,)
    write_bundle(tuned / "checkpoint", tmp_path / "bundle")
    bundle = read_bundle(tmp_path / "bundle")
    assert bundle.manifest.lineage == (first,)
    assert max(bundle.manifest.parity[name] for name in bundle.manifest.parity if name.startswith("ensemble")) < 1e-4
    assert str(first) in (tmp_path / "bundle" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "on 32 clips of 4 speakers of table." in str(first)
    begun = begin(world.source(), world.target(), world.data, world.cache, silent).prepared
    test = begun.test["table"]
    frames = [{name: rows[n].astype(np.float32) for name, rows in test.frames.items()} for n in range(len(test))]
    served = EnsembleRuntime(bundle, threads=1).score(frames)
    with (tuned / "predictions" / "table.csv").open(newline="", encoding="utf-8") as file:
        told = [[float(row[f"p_{name}"]) for name in CLASSES] for row in csv.DictReader(file)]
    np.testing.assert_allclose([posteriors.probabilities for posteriors in served], told, atol=2e-3)


def test_curves_are_of_what_a_transfer_trained_itself(world: World, tuned: Path, tmp_path: Path) -> None:
    """In the folder of a run that trained folds and a meta-classifier, one that keeps the source's."""
    out = Path(shutil.copytree(tuned, tmp_path / "out"))
    before = {(row["fold"], row["stage"]) for row in json.loads((out / "report.json").read_text())["learning_curves"]}
    assert before == {(fold, "stage1") for fold in (None, 0, 1)} | {(None, "stage3")}
    finetune(world.source(), world.target('meta = "keep"\n', tmp_path), world.data, world.cache, out, silent)
    curves = json.loads((out / "report.json").read_text())["learning_curves"]
    assert [(row["member"], row["fold"], row["stage"]) for row in curves] == [
        ("voice", None, "stage1"),
        ("words", None, "stage1"),
    ]
    assert not list((out / "meta").glob("*.json"))


def test_few_speakers_train_no_meta_classifier(world: World, tmp_path: Path) -> None:
    few = world.target(folder=tmp_path)
    recipe = few.recipe.model_copy(update={"meta": few.recipe.meta.model_copy(update={"folds": 5})})
    source = world.source("voice")
    mine = Target(recipe.model_copy(update={"members": source.recipe.members}), few.transfer)
    finetune(source, mine, world.data, world.cache, tmp_path / "out", silent)
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "The meta-classifier is a soft vote: 4 training speakers, 5 folds." in card
    assert "a linear meta-classifier that was given and not trained here" in card
    assert not list((tmp_path / "out" / "members").glob("*-without-fold-*"))


def test_mistakes_of_a_target_file_are_told_at_once(world: World, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"(?s)train.*'all' or 'heads'.*anchor.*greater than or equal to 0"):
        world.target('train = "some"\nanchor = -1\n', tmp_path)
    (tmp_path / "bad.toml").write_text('name = "x"\n[data]\ncorpus = "no-such"\n', encoding="utf-8")
    foreign = TARGET + "[member_defaults]\ndim = 4\n"
    (tmp_path / "foreign.toml").write_text(foreign, encoding="utf-8")
    with pytest.raises(RecipeError, match="has the sections member_defaults: those of the source are used"):
        load_target(tmp_path / "foreign.toml", world.source().recipe)
    (tmp_path / "foreign.toml").write_text(TARGET + "[adaptation]\nstrength = 3.0\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="has the sections adaptation: those of the source are used"):
        load_target(tmp_path / "foreign.toml", world.source().recipe)
    with pytest.raises(RecipeError, match=r"licence.*Field required"):
        load_target(tmp_path / "bad.toml", world.source().recipe)


def test_the_commands_write_a_curve_and_runs(world: World, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TARGET, encoding="utf-8")
    given = ["--run", world.run, "--config", tmp_path / "mine.toml", "--data", world.data, "--cache", world.cache]

    def invoke(command: str, *more: str | Path) -> Result:
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, [command, *map(str, (*given, *more))])

    curve = invoke("fewshot", "--out", tmp_path / "few", "--members", "voice", "--budgets", "0.34,1", "--draws", "2")
    assert curve.exit_code == 0, curve.output
    results = json.loads((tmp_path / "few" / "fewshot.json").read_text())
    assert [row["share"] for row in results["budgets"]] == [0.34, 1.0]
    assert [row["speakers"] for row in results["budgets"]] == [[2, 2], [6, 6]]
    assert [row["validating"] for row in results["budgets"]] == [[0, 0], [8, 8]], "of two speakers none validates"
    assert [row["clips"] for row in results["budgets"]] == [[16, 16], [40, 40]]
    for row in results["budgets"]:
        for system in (FINETUNED, SCRATCH):
            assert 0 <= row["systems"][system]["uar"]["low"] <= row["systems"][system]["uar"]["high"] <= 1
            assert np.mean(row["systems"][system]["by_draw"]) == pytest.approx(row["systems"][system]["uar"]["value"])
    page, table = ((tmp_path / "few" / name).read_text() for name in ("fewshot.html", "FEWSHOT.md"))
    assert '<svg class="plot"' in page
    assert "<script" not in page
    assert f"| 0 % | 0 | {UNTOUCHED}" in table
    done = invoke("adapt", "--method", "prior", "--out", tmp_path / "prior")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "prior" / "report.html").is_file()
    refused = invoke("adapt", "--method", "magic", "--out", tmp_path / "magic")
    assert (refused.exit_code, "a method is one of" in refused.stderr) == (2, True)
    for option, value in (("--budgets", "1,0.1"), ("--budgets", "some"), ("--unit", "words")):
        assert invoke("fewshot", "--out", tmp_path / "x", option, value).exit_code == 2


def test_a_class_that_the_target_lacks_is_kept(world: World, tmp_path: Path) -> None:
    """By the source's meta-classifier, because one trained here would give it nothing; the card says so."""
    data = Path(shutil.copytree(world.data, tmp_path / "data"))
    write_target(data / "mine", {(s, "disgust", take): "surprise" for s in SPEAKERS for take in range(2)})
    finetune(world.source(), world.target(folder=tmp_path), data, world.cache, tmp_path / "out", silent)
    ours, theirs = load_checkpoint(tmp_path / "out" / "checkpoint"), load_checkpoint(world.run / "checkpoint")
    assert ours.spec.trained_classes == theirs.spec.trained_classes
    assert torch.equal(ours.meta.linear.weight, theirs.meta.linear.weight)
    (kept,), (given,) = ours.fallbacks, theirs.fallbacks
    assert kept.spec.members == given.spec.members == ("voice",)
    assert torch.equal(kept.meta.linear.weight, given.meta.linear.weight)
    assert (kept.spec.temperature, kept.spec.abstain_below) != (given.spec.temperature, given.spec.abstain_below)
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| fallback 1: voice |" in card
    assert "The meta-classifier is the source's: the target has no clip of disgust, which one trained on it" in card


def test_nobody_who_made_the_source_is_tested_on(world: World, tuned: Path, tmp_path: Path) -> None:
    """Neither by another division of the same corpus, nor as another test set, nor through a run in between."""
    known = world.source().known
    assert known is not None
    (base,) = known
    target = world.target(folder=tmp_path)
    again = with_data(target, corpus="cremad", options=world.source().recipe.data.options, split_seed=5)
    with pytest.raises(LeakageError, match="speakers of cremad would be tested on, and have trained or selected"):
        finetune(world.source(), again, world.data, world.cache, tmp_path / "out", silent)
    evaluating = with_data(target, evaluate=("cremad",))
    beside = begin(world.source(), evaluating, world.data, world.cache, silent).prepared
    assert beside.test["cremad"].speakers
    assert not {*base.learned, *base.selecting} & set(beside.test["cremad"].speakers)
    everybody = Acquaintance("cremad", (*base.learned, *base.selecting, *beside.test["cremad"].speakers))
    with pytest.raises(LeakageError, match="everybody in cremad has trained or selected"):
        begin(
            replace(world.source(), known=(everybody,)),
            with_data(target, evaluate=("cremad",)),
            world.data,
            world.cache,
            silent,
        )
    with pytest.raises(LeakageError, match="speakers of cremad would be tested on"):
        adapt(read_source(tuned), again, "prior", world.data, world.cache, tmp_path / "out", silent)
    old = Path(shutil.copytree(world.run, tmp_path / "old"))
    (old / SPEAKERS_FILE).unlink()
    assert read_source(old).known is None
    assert read_source(old).acquaintances(("cremad",), world.data) == known, "divided again, as its recipe says"


def test_what_was_fine_tuned_can_be_adapted(world: World, tuned: Path, tmp_path: Path) -> None:
    """Its corpus has a class that it was never taught; the ratio of a prior is that of what is expected now."""
    source = read_source(tuned)
    cremad = with_data(
        world.target(folder=tmp_path),
        corpus="cremad",
        options=world.source().recipe.data.options,
        split_seed=0,
        dev_fraction=world.source().recipe.data.dev_fraction,
        test_fraction=world.source().recipe.data.test_fraction,
    )
    heard = hear(source, cremad, world.data, world.cache, silent)
    found = adapted(source, cremad, "prior", heard, tmp_path / "members", silent)
    moved = found.ensemble.soup.linear.bias - source.checkpoint.meta.linear.bias
    assert heard.prepared.training.trained_classes == source.classes
    assert torch.any(moved[:8] != 0)
    shift = np.exp(moved[:8].detach().numpy() / found.ensemble.temperature)
    posterior = source.posterior(heard.prepared.training.dev)
    plain = fit_prior_ratio(posterior, heard.prepared.training.dev.targets)
    known = [CLASSES.index(name) for name in source.classes]
    np.testing.assert_allclose((found.ensemble.prior_ratio * shift)[known], plain[known], rtol=0.02)


def test_members_are_held_to_the_source_and_not_to_where_a_stage_begins(world: World, tmp_path: Path) -> None:
    begun = begin(world.source(), world.target("anchor = 3.0\n", tmp_path), world.data, world.cache, silent).prepared
    start = begun.training.start
    assert start is not None
    assert start.auxiliary is not None
    member = copy.deepcopy(world.source().members[0])
    start.begin(member)
    with torch.no_grad():
        for values in member.parameters():
            values.add_(1.0)  # as a first stage would have left them
    penalty = start.auxiliary(member, 0, 1)(member, torch.zeros(2, 8), lambda rows: torch.zeros(2, 8))
    assert float(penalty.detach()) == pytest.approx(1.5 * sum(v.numel() for v in member.parameters()), rel=1e-4)


def test_members_that_heard_channels_otherwise_are_not_taken_for_these(world: World) -> None:
    """Nothing else of what they were trained on tells the reference, so a run that continues would keep them."""
    own = world.source().checkpoint.adaptation
    assert own is not None
    moved = replace(own, reference=own.reference + np.float32(1.0))
    found = [
        prepare(world.source().recipe, world.data, world.cache, silent, view=View(adaptation=heard)).training.content
        for heard in (own, own, moved)
    ]
    assert found[0] == found[1] != found[2]
