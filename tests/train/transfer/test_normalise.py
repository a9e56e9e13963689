"""What an ensemble takes for usual, moved to where the target is."""

from dataclasses import replace

import numpy as np
import torch

from model.adaptation import FUNCTIONALS, Adaptation
from model.network.deepser import DeepSER
from model.network.member import build_member
from model.spec import EncoderSpec, MemberSpec
from tests.train.synthetic import TRAINED
from train.loop import class_bias, predict
from train.stages.members import moments
from train.transfer.normalise import SOURCE_COUNTS, normalised, reference_of
from train.transfer.unlabelled import Unlabelled

WIDTH = 6
ENCODERS = {
    FUNCTIONALS: EncoderSpec(FUNCTIONALS, "functionals", WIDTH, 1),
    "text": EncoderSpec("text", "text-transformer", 4, 1),
}


def audio(count: int = 600, shift: float = 0.0, scale: float = 1.0, seed: int = 0) -> Unlabelled:
    rng = np.random.default_rng(seed)
    frames = scale * rng.standard_normal((count, 3, WIDTH)) + shift
    words = rng.standard_normal((count, 2, 4)) + 3.0
    return Unlabelled(
        ids=tuple(f"clip-{n}" for n in range(count)),
        speakers=tuple(f"speaker-{n % 5}" for n in range(count)),
        frames={
            FUNCTIONALS: [row.astype(np.float16) for row in frames],
            "text": [row.astype(np.float16) for row in words],
        },
    )


def member() -> DeepSER:
    torch.manual_seed(1)
    spec = MemberSpec("m", (FUNCTIONALS, "text"), 8, heads=2, layers=1, feed_forward=8, dropout=0.0, seed=1)
    found = build_member(spec, ENCODERS)
    assert isinstance(found, DeepSER)
    return found.eval()


def moved_to(target: Unlabelled) -> DeepSER:
    found = member()
    found.load_state_dict(normalised(member(), target, ENCODERS))
    return found.eval()


def test_a_target_that_is_moved_and_stretched_is_heard_as_the_source_was() -> None:
    source, target, bias = audio(), audio(shift=5.0, scale=3.0), class_bias(TRAINED)
    expected = predict(moved_to(source), ENCODERS, source, bias)[0]
    moved, untouched = (predict(found, ENCODERS, target, bias)[0] for found in (moved_to(target), member()))
    errors = [float(np.abs(found - expected).mean()) for found in (moved, untouched)]
    assert errors[0] < 0.1 * errors[1]


def test_no_weight_changes_and_no_word_is_normalised() -> None:
    before, after = member().state_dict(), normalised(member(), audio(shift=5.0), ENCODERS)
    changed = {name for name, values in after.items() if not torch.equal(values, before[name])}
    assert changed == {"stacks.functionals.mean", "stacks.functionals.scale"}


def test_few_utterances_move_it_part_of_the_way() -> None:
    few = audio(count=5, shift=4.0)
    mean, deviation = moments(few.frames[FUNCTIONALS])
    after = normalised(member(), few, ENCODERS)
    share = 5 / (5 + SOURCE_COUNTS)
    np.testing.assert_allclose(after["stacks.functionals.mean"].numpy(), share * mean, rtol=1e-5)
    mixture = share * deviation**2 + (1 - share) * 1.0 + share * (1 - share) * mean**2
    np.testing.assert_allclose(1.0 / after["stacks.functionals.scale"].numpy(), np.sqrt(mixture), rtol=1e-5)


def test_the_reference_is_the_mean_of_speakers_not_of_utterances() -> None:
    loud, own = audio(count=40, shift=2.0), Adaptation(np.ones((3, WIDTH), np.float32), 7.0)
    uneven = replace(loud, speakers=("one",) * 30 + ("other",) * 10)
    rows = np.stack(loud.frames[FUNCTIONALS]).astype(np.float64)
    expected = (rows[:30].mean(axis=0) + rows[30:].mean(axis=0)) / 2
    share = 40 / (40 + SOURCE_COUNTS)
    found = reference_of(uneven, own)
    np.testing.assert_allclose(found.reference, share * expected + (1 - share), rtol=1e-5)
    assert found.strength == 7.0


def test_calls_are_heard_against_what_was_said_before_in_them() -> None:
    """Each speaker by itself, the first utterance of a call as it is; the audio itself stays as it was."""
    own, target = Adaptation(np.zeros((3, WIDTH), np.float32), 0.5), audio(count=20, shift=2.0)
    heard = target.heard(own, np.random.default_rng(0))
    same = [
        speaker
        for speaker, before, after in zip(
            target.speakers, target.frames[FUNCTIONALS], heard.frames[FUNCTIONALS], strict=True
        )
        if np.array_equal(before, after)
    ]
    assert sorted(same) == sorted(set(target.speakers))
    assert np.stack(heard.frames[FUNCTIONALS]).mean() < 1.2 < np.stack(target.frames[FUNCTIONALS]).mean()
    assert target.heard(None, np.random.default_rng(0)) is target
