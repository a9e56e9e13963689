"""Members that learn from guesses of their own: who guesses about whom, what a round trains, and what a reader is told."""

import copy
import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.labels import CLASSES
from model.network.checkpoint import load_checkpoint
from tests.train.transfer.conftest import LABELS, SPEAKERS, World, silent, write_target
from train.dataset import FUNCTIONALS
from train.errors import RecipeError
from train.features import Progress
from train.loop import class_bias, predict
from train.pseudo_labels import Guessed, sharpened
from train.stages.members import ALL_SPEAKERS, Job, TrainingSet, train_member
from train.transfer.adapt import adapted, hear
from train.transfer.begin import Begun, begin
from train.transfer.budgets import UNITS, Budget
from train.transfer.fewshot import Plan, fewshot
from train.transfer.finetune import finetune
from train.transfer.self_training import Unspoken, self_trained
from train.transfer.source import Source
from train.transfer.target import SelfTraining, Target

ASKED = "[transfer.self_training]\nrounds = 2\n"
SILENT_SPEAKERS = (0, 1)


@pytest.fixture(scope="module")
def partly(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of the world with two speakers whom nobody has labelled."""
    data = Path(shutil.copytree(world.data, tmp_path_factory.mktemp("partly") / "data"))
    table = data / "mine" / "labels.csv"
    rows = list(csv.reader(table.read_text(encoding="utf-8").splitlines()))
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [audio, who, "" if who in {f"s{n}" for n in SILENT_SPEAKERS} else label] for audio, who, label in rows
        )
    return data


def begun(world: World, data: Path, folder: Path, more: str = ASKED) -> tuple[Target, Begun]:
    target = world.target(more, folder)
    return target, begin(world.source(), target, data, world.cache, silent)


def of_voice(source: Source, target: Target) -> Target:
    """A target of the members that the source has, without the fallbacks of the whole."""
    recipe = target.recipe.model_copy(update={"members": source.recipe.members, "fallbacks": ()})
    return Target(recipe, target.transfer)


def guesses_of(training: TrainingSet, fold: int) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float32]]]:
    assert training.guessed is not None
    first = training.guessed.by_fold[fold][0]
    return dict(zip(first.ids, first.targets, strict=True))


def test_what_nobody_has_labelled_is_guessed_and_nothing_else(world: World, partly: Path, tmp_path: Path) -> None:
    target, found = begun(world, partly, tmp_path)
    given = found.without_labels(target.transfer)
    assert given is not None
    assert set(given.audio.speakers) == {f"mine-s{n}" for n in SILENT_SPEAKERS}
    assert len(given.audio) == len(SILENT_SPEAKERS) * len(LABELS) * 2
    _, everything = begun(world, world.data, tmp_path)
    assert everything.without_labels(target.transfer) is None, "all of it is labelled, surprise too"
    _, unasked = begun(world, partly, tmp_path, "")
    assert unasked.without_labels(world.target("", tmp_path).transfer) is None


def test_nothing_is_guessed_about_who_selects_or_may_be_anybody(world: World, tmp_path: Path) -> None:
    """Every speaker has clips without a label here; those of one fold alone leave the other folds with none to guess about."""
    data = Path(shutil.copytree(world.data, tmp_path / "data"))
    half = {(speaker, label, 1): "" for speaker in SPEAKERS for label in LABELS}
    write_target(data / "mine", half)
    target, found = begun(world, data, tmp_path)
    given, training = found.without_labels(target.transfer), found.prepared.training
    assert given is not None
    assert set(given.audio.speakers) == set(training.train.speakers)
    assert not set(given.audio.speakers) & {*training.dev.speakers, *found.prepared.test["table"].speakers}
    sure = replace(found, unsure=frozenset(given.audio.ids[:3])).without_labels(target.transfer)
    assert sure is not None
    assert len(sure.audio) == len(given.audio) - 3
    first = {name for name, fold in zip(training.train.speakers, training.folds, strict=True) if fold == 0}
    alone = Unspoken(
        given.audio.without(speakers=set(given.audio.speakers) - first), given.adaptation, SelfTraining(rounds=1)
    )
    jobs = [Job(spec, fold) for spec in target.recipe.member_specs() for fold in (ALL_SPEAKERS, 0)]
    trained = self_trained(jobs, target.recipe, training, alone, tmp_path / "rounds", silent)
    assert trained.guessed is not None
    assert trained.guessed.by_fold.keys() == {ALL_SPEAKERS}


def test_a_class_that_no_guess_is_first_for_keeps_its_logit(world: World, partly: Path, tmp_path: Path) -> None:
    target, found = begun(world, partly, tmp_path)
    training = found.prepared.training
    rows, sad = np.flatnonzero(training.train.dominant != CLASSES.index("sad")), CLASSES.index("sad")
    copies = tuple(copy.subset(rows) for copy in training.copies)
    weights = {}
    job = Job(target.recipe.member_specs()[0], ALL_SPEAKERS)
    for name in ("angry", "sad"):
        targets = np.full((4, len(CLASSES)), 0.02, np.float32)
        targets[:, CLASSES.index(name)] = 1.0 - 0.02 * (len(CLASSES) - 1)
        guessed = replace(copies[0].subset([0, 1, 2, 3]), targets=targets)
        given = replace(
            training,
            copies=copies,
            folds=training.folds[rows],
            selects=False,
            guessed=Guessed({ALL_SPEAKERS: (guessed,)}, 1),
            content=name,
        )
        weights[name] = train_member(job, target.recipe, given, tmp_path / name).state_dict()["classifier.bias"][sad]
    was = world.source().members[0].state_dict()["classifier.bias"][sad]
    assert abs(float(weights["angry"] - was)) < 2e-4 < abs(float(weights["sad"] - was))


def test_every_fold_is_guessed_by_members_that_have_not_heard_it(world: World, partly: Path, tmp_path: Path) -> None:
    """And of its speakers nothing is guessed, however many of their clips have no label."""
    target, found = begun(world, partly, tmp_path)
    training, whole = found.prepared.training, found.audio
    assert whole is not None
    given = Unspoken(whole, found.prepared.adaptation, SelfTraining(rounds=1))
    jobs = [Job(spec, fold) for spec in target.recipe.member_specs() for fold in (ALL_SPEAKERS, 0, 1)]
    trained = self_trained(jobs, target.recipe, training, given, tmp_path / "rounds", silent)
    assert trained.guessed is not None
    for fold in (0, 1):
        own = {name for name, number in zip(training.train.speakers, training.folds, strict=True) if number == fold}
        speakers = set(trained.guessed.by_fold[fold][0].speakers)
        assert own
        assert speakers == set(whole.speakers) - own
    assert set(trained.guessed.by_fold[ALL_SPEAKERS][0].speakers) == set(whole.speakers)
    voting = [
        train_member(job, target.recipe, training, tmp_path / "rounds" / "round-0") for job in jobs if job.fold == 0
    ]
    heard = whole.subset([list(whole.ids).index(name) for name in trained.guessed.by_fold[0][0].ids])
    heard = heard.heard(given.adaptation, np.random.default_rng(target.recipe.seed))
    posterior = [
        predict(m, target.recipe.encoder_specs(), heard, class_bias(training.trained_classes))[0] for m in voting
    ]
    expected = sharpened(np.mean(posterior, axis=0), given.config.sharpness)
    np.testing.assert_allclose(trained.guessed.by_fold[0][0].targets, expected, atol=1e-6)


def test_a_round_guesses_by_what_the_round_before_has_trained(world: World, partly: Path, tmp_path: Path) -> None:
    target, found = begun(world, partly, tmp_path)
    given = found.without_labels(target.transfer)
    assert given is not None
    told: list[str] = []

    def note(what: str, done: int, total: int) -> None:
        told.append(what)

    jobs = [Job(spec, ALL_SPEAKERS) for spec in target.recipe.member_specs()]
    rounds = {}
    for number in (1, 2):
        config = SelfTraining(rounds=number)
        progress: Progress = note
        rounds[number] = self_trained(
            jobs,
            target.recipe,
            found.prepared.training,
            Unspoken(given.audio, given.adaptation, config),
            tmp_path / str(number),
            progress,
        )
    first, second = (guesses_of(rounds[number], ALL_SPEAKERS) for number in (1, 2))
    assert first.keys() == second.keys() == set(given.audio.ids)
    assert any(not np.array_equal(first[name], second[name]) for name in first)
    assert {name for name in told if name} == {"round-0", "round-1"}
    assert rounds[1].content != rounds[2].content != found.prepared.training.content
    assert [copy.ids for copy in rounds[2].copies] == [copy.ids for copy in found.prepared.training.copies]
    assert rounds[1].guessed is not None
    hearings = rounds[1].guessed.by_fold[ALL_SPEAKERS]
    assert target.recipe.adaptation is not None
    assert len(hearings) == target.recipe.adaptation.draws, "as often as labelled clips are dealt into calls"
    assert not np.array_equal(hearings[0].frames[FUNCTIONALS][0], hearings[1].frames[FUNCTIONALS][0])


def test_without_a_label_weights_move_towards_guesses_of_several_classes(world: World, tmp_path: Path) -> None:
    """Beside the statistics, and what the source was stays as it was; the source of the other tests guesses one class alone."""
    source = world.source("voice")
    decided = copy.deepcopy(source.members[0])
    with torch.no_grad():
        decided.classifier.weight.normal_(std=3.0, generator=torch.Generator().manual_seed(1))
    before = {name: values.clone() for name, values in decided.state_dict().items()}
    source, target = replace(source, members=(decided,)), of_voice(source, world.target(ASKED, tmp_path))
    heard = hear(source, target, world.data, world.cache, silent)
    found = adapted(source, target, "self-train", heard, tmp_path / "members", silent)
    after = found.ensemble.members[0].state_dict()
    moved = {name.split(".")[0] for name, values in after.items() if not torch.equal(values, before[name])}
    assert {"stacks", "classifier"} < moved
    assert all(torch.equal(values, before[name]) for name, values in decided.state_dict().items())


def test_fine_tuning_learns_from_its_guesses_and_says_so(world: World, partly: Path, tmp_path: Path) -> None:
    weights = {}
    for name, more in (("plain", ""), ("self", ASKED)):
        source, target = world.source("voice"), world.target(more, tmp_path)
        target = of_voice(source, target)
        finetune(source, target, partly, world.cache, tmp_path / name, silent)
        (member,) = load_checkpoint(tmp_path / name / "checkpoint").members
        weights[name] = member.state_dict()
    assert any(not torch.equal(values, weights["self"][name]) for name, values in weights["plain"].items())
    limits = {name: json.loads((tmp_path / name / "report.json").read_text())["limits"] for name in weights}
    note = "Members were trained on guesses of their own about 20 clips of 2 speakers without labels"
    assert [any(line.startswith(note) for line in limits[name]) for name in ("plain", "self")] == [False, True]
    heard = json.loads((tmp_path / "self" / "speakers.json").read_text())
    assert "mine-s0" in json.dumps(heard)


def test_a_budget_guesses_about_what_it_has_not_bought(world: World, tmp_path: Path) -> None:
    target = world.target(ASKED, tmp_path)
    for unit in UNITS:
        budget = Budget(0.25, 0, unit)
        found = begin(world.source(), target, world.data, world.cache, silent, budget)
        bought, left = found.prepared.training.train, found.unbought(budget, target.transfer)
        assert left is not None
        assert not set(bought.ids) & set(left.audio.ids)
        assert bool(set(bought.speakers) & set(left.audio.speakers)) == (unit == "clips")
        assert not set(left.audio.speakers) & set(found.prepared.test["table"].speakers)
        assert found.audio is not None
        kept, selecting = set(left.audio.speakers) | set(bought.speakers), set(found.prepared.training.dev.speakers)
        assert kept == set(found.audio.speakers) - (selecting - set(bought.speakers))


def test_the_curve_says_that_members_learned_from_guesses(world: World, tmp_path: Path) -> None:
    source, target = world.source("voice"), world.target(ASKED, tmp_path)
    target = of_voice(source, target)
    page = fewshot(source, target, Plan((0.25, 1.0), 1), world.data, world.cache, tmp_path / "out", silent)
    results = json.loads((tmp_path / "out" / "fewshot.json").read_text())
    assert results["self_training"] == {"rounds": 2, "sharpness": 1.5, "label_weight": 8}
    for text in (page.read_text(), (tmp_path / "out" / "FEWSHOT.md").read_text()):
        assert "guesses of their own" in text
    rounds = {path.parent.parent.name for path in (tmp_path / "out" / "members").rglob("round-1/*.safetensors")}
    assert rounds == {"self-training"}
    few, full = (tmp_path / "out" / "members" / f"{share}-percent-of-speakers-draw-0" for share in ("25", "100"))
    assert (few / "finetuned" / "self-training").is_dir()
    assert not (full / "finetuned" / "self-training").exists(), "nothing is left to guess about"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [("rounds = 0", "self_training.rounds"), ("sharpness = 0.0", "sharpness"), ("label_weight = 0", "label_weight")],
)
def test_settings_that_cannot_be_are_refused(world: World, tmp_path: Path, wrong: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        world.target(f"[transfer.self_training]\n{wrong}\n", tmp_path)
