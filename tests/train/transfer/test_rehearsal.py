"""The source's clips beside the target's: how they are moved, how many there are, and what they keep from being unlearned."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from model.labels import CLASSES
from model.spec import MemberSpec
from tests.train.synthetic import ENCODERS, TRAINED, make_examples
from tests.train.transfer.conftest import World, silent
from tests.train.transfer.test_self_training import of_voice
from train.dataset import Examples, mix_copies, tensors
from train.errors import RecipeError
from train.stages.members import ALL_SPEAKERS, Job, train_member
from train.transfer.begin import begin, practise, taught_by
from train.transfer.fewshot import Plan, fewshot
from train.transfer.finetune import finetune
from train.transfer.rehearsal import Rehearsal, moves_between
from train.transfer.source import with_weights
from train.transfer.target import Target

ASKED = "rehearsal = 12\n"


TINY = MemberSpec("tiny", ("prosody", "text"), dim=8, heads=2, layers=1, feed_forward=16, dropout=0.0, seed=1)
WORDS = replace(TINY, name="words")
COPIES = tuple(make_examples(TRAINED * 4, seed=seed) for seed in (1, 2))


def rehearsal(clips: int) -> Rehearsal:
    def practise(member: MemberSpec, rows: npt.NDArray[np.int64], rng: np.random.Generator) -> Examples:
        return mix_copies([copy.subset(rows) for copy in COPIES], rng)

    move = np.full(ENCODERS["prosody"].dim, 2.0, np.float32), np.full(ENCODERS["prosody"].dim, 0.5, np.float32)
    return Rehearsal(practise, len(COPIES[0]), clips, {"tiny": {"prosody": move}, "words": {}})


def test_the_target_stands_as_often_as_makes_it_as_many() -> None:
    learned = make_examples(TRAINED, seed=3)
    count = 2 * len(TRAINED)
    found = rehearsal(count).beside(learned, TINY, np.random.default_rng(0))
    assert found.ids[: 2 * len(learned)] == learned.ids * 2
    assert len(found) == 2 * len(learned) + count
    assert len(set(found.ids[2 * len(learned) :])) == count
    one, other = (rehearsal(3).beside(learned, TINY, np.random.default_rng(seed)).ids[-3:] for seed in (1, 2))
    assert one != other, "other clips in every epoch"
    everything = rehearsal(1000).beside(learned, TINY, np.random.default_rng(0))
    assert len(everything) == 2 * len(TRAINED) * 4, "no more than there are"


def test_only_modalities_with_other_statistics_are_moved() -> None:
    plan, learned = rehearsal(5), make_examples(TRAINED, seed=3)
    for member in (TINY, WORDS):
        found = plan.beside(learned, member, np.random.default_rng(0))
        for row in range(-5, 0):
            number = COPIES[0].ids.index(found.ids[row])
            own = [copy.frames["prosody"][number] for copy in COPIES]
            expected = [2.0 * values.astype(np.float32) + 0.5 if member is TINY else values for values in own]
            got = found.frames["prosody"][row]
            assert any(len(v) == len(got) and np.allclose(got, v, rtol=2e-3, atol=0.01) for v in expected)


def test_a_moved_clip_is_heard_as_the_source_heard_it(world: World, tmp_path: Path) -> None:
    """By every member, up to half precision: its statistics are the target's now."""
    source, target = world.source(), world.target(ASKED, tmp_path)
    known = taught_by(source, target, world.data, world.cache, silent)
    assert known is not None
    training = begin(source, target, world.data, world.cache, silent, taught=known).prepared.training
    assert training.rehearsal is not None
    assert training.start is not None
    changed = 0
    for member in source.members:
        name = member.spec.name
        now = with_weights(member, training.start.weights[name], target.recipe)
        one_copy = replace(known, copies=known.copies[:1], bank=None)
        plain = replace(training.rehearsal, practise=partial(practise, source.recipe, one_copy))
        moved = plain.beside(known.copies[0].subset([0]), member.spec, np.random.default_rng(0)).subset(range(-12, 0))
        rows = [known.copies[0].ids.index(one) for one in moved.ids]
        inputs = {n: target.recipe.encoder_specs()[n] for n in member.spec.modalities}
        changed += len(plain.moves[name])
        for modality, stack in member.stacks.items():
            (before, mask), (after, _) = (
                (frames[modality], masks[modality])
                for frames, masks in (
                    tensors(known.copies[0].subset(rows).frames, inputs),
                    tensors(moved.frames, inputs),
                )
            )
            expected, heard = stack(before, mask)[0], now.stacks[modality](after, mask)[0]
            torch.testing.assert_close(heard, expected, atol=0.05, rtol=0.05)
    assert changed > 0


def test_what_the_target_lacks_is_practised(world: World, tmp_path: Path) -> None:
    """Its clips push a class that they lack nowhere; rehearsal teaches it on."""
    weights = {}
    for name, more in (("plain", ""), ("rehearsed", ASKED)):
        source, target = world.source("voice"), world.target(more, tmp_path)
        target = of_voice(source, target)
        known = taught_by(source, target, world.data, world.cache, silent)
        training = begin(source, target, world.data, world.cache, silent, taught=known).prepared.training
        rows = np.flatnonzero(training.train.dominant != CLASSES.index("sad"))
        copies = tuple(copy.subset(rows) for copy in training.copies)
        training = replace(training, copies=copies, folds=training.folds[rows], selects=False)
        (spec,) = target.recipe.member_specs()
        weights[name] = train_member(Job(spec, ALL_SPEAKERS), target.recipe, training, tmp_path / name).state_dict()
    was = world.source("voice").members[0].state_dict()["classifier.bias"]
    sad = CLASSES.index("sad")
    moved = {name: float((found["classifier.bias"] - was)[sad].abs()) for name, found in weights.items()}
    assert moved["plain"] < 1e-3 < moved["rehearsed"]


def test_fine_tuning_and_the_curve_rehearse(world: World, tmp_path: Path) -> None:
    source, target = world.source("voice"), of_voice(world.source("voice"), world.target(ASKED, tmp_path))
    finetune(source, target, world.data, world.cache, tmp_path / "tuned", silent)
    notes = json.loads((tmp_path / "tuned" / "members" / "voice.stage1.json").read_text())
    learned = 4 * 4 * 2  # the target's training clips
    assert notes["rows"][0]["examples"] == learned + 12
    page = fewshot(source, target, Plan((1.0,), 1), world.data, world.cache, tmp_path / "out", silent)
    assert json.loads((tmp_path / "out" / "fewshot.json").read_text())["rehearsal"] == 12
    for text in (page.read_text(), (tmp_path / "out" / "FEWSHOT.md").read_text()):
        assert "practised 12 clips of the source" in text
    keys = {
        json.loads(path.read_text())["rows"][0]["examples"]
        for path in (tmp_path / "out").rglob("scratch/voice.stage1.json")
    }
    assert max(keys) < learned + 12, "nothing is practised from scratch"


def test_statistics_that_stay_move_nothing(world: World, tmp_path: Path) -> None:
    member = world.source().members[0]
    assert moves_between(member.state_dict(), member.state_dict()) == {}
    target = world.target(ASKED + 'statistics = "source"\n', tmp_path)
    known = taught_by(world.source(), target, world.data, world.cache, silent)
    begun = begin(world.source(), target, world.data, world.cache, silent, taught=known)
    assert begun.prepared.training.rehearsal is not None
    assert not any(begun.prepared.training.rehearsal.moves.values())


def test_rehearsal_is_told_from_none_by_the_key(world: World, tmp_path: Path) -> None:
    contents = []
    for more in ("", ASKED, "rehearsal = 13\n"):
        target: Target = world.target(more, tmp_path)
        known = taught_by(world.source(), target, world.data, world.cache, silent)
        contents.append(
            begin(world.source(), target, world.data, world.cache, silent, taught=known).prepared.training.content
        )
    assert len(set(contents)) == 3


def test_a_number_of_clips_is_none_or_more(world: World, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="rehearsal"):
        world.target("rehearsal = -1\n", tmp_path)
