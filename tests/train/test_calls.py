from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from model.adaptation import Adaptation
from tests.train.synthetic import TRAINED, make_examples
from train.calls import deal, heard_in_calls, reference_of_training
from train.dataset import FUNCTIONALS, Examples

LABELS = tuple(np.random.default_rng(5).permutation(TRAINED * 60))
SHAPE = (3, 4)


def examples(offset: float = 0.0) -> Examples:
    """Four speakers whose functionals differ by a constant of each speaker."""
    plain = make_examples(LABELS)
    rng = np.random.default_rng(1)
    voices = {f"speaker-{number}": offset * (number + 1) for number in range(4)}
    rows = [(rng.standard_normal(SHAPE) + voices[speaker]).astype(np.float16) for speaker in plain.speakers]
    return replace(plain, frames={**plain.frames, FUNCTIONALS: rows})


@pytest.mark.parametrize(("calls", "one_sided"), [(1, False), (3, False), (3, True), (7, True)])
def test_every_clip_is_in_one_call_of_its_speaker(calls: int, one_sided: bool) -> None:
    data = examples()
    dealt = deal(data, np.random.default_rng(0), calls, one_sided=one_sided)
    assert sorted(np.concatenate(dealt)) == list(range(len(data)))
    of_speaker = Counter(data.speakers[call[0]] for call in dealt)
    assert all(len({data.speakers[row] for row in call}) == 1 for call in dealt)
    assert max(of_speaker.values()) <= calls


def test_one_sided_calls_are_of_few_moods() -> None:
    data = examples()

    def leaning(one_sided: bool) -> float:
        dealt = deal(data, np.random.default_rng(0), 3, one_sided=one_sided)
        return float(np.mean([max(Counter(data.dominant[call]).values()) / len(call) for call in dealt]))

    assert leaning(True) > leaning(False) + 0.1


def test_calls_have_a_random_order() -> None:
    first, second = (deal(examples(), np.random.default_rng(seed))[0] for seed in (0, 1))
    assert sorted(first) == sorted(second)
    assert list(first) != list(second) != sorted(second)


def test_hearing_in_calls_takes_the_speaker_out() -> None:
    data = examples(offset=5.0)
    adaptation = Adaptation(reference_of_training(examples()), 1.0)
    heard = heard_in_calls(data, adaptation, deal(data, np.random.default_rng(0)))

    def spread(part: Examples) -> float:
        means = [
            np.mean([rows for rows, who in zip(part.frames[FUNCTIONALS], part.speakers, strict=True) if who == name])
            for name in sorted(set(part.speakers))
        ]
        return float(np.std(means))

    assert spread(heard) < 0.2 * spread(data)
    assert heard.frames["whisper"] is data.frames["whisper"]


def test_the_past_alone_counts() -> None:
    data = examples(offset=3.0)
    adaptation = Adaptation(reference_of_training(data), 2.0)
    calls = deal(data, np.random.default_rng(0))
    whole = heard_in_calls(data, adaptation, calls)
    call = calls[0]
    changed = [rows.copy() for rows in data.frames[FUNCTIONALS]]
    changed[call[-1]] += 100
    other = heard_in_calls(replace(data, frames={**data.frames, FUNCTIONALS: changed}), adaptation, calls)
    np.testing.assert_array_equal(data.frames[FUNCTIONALS][call[0]], whole.frames[FUNCTIONALS][call[0]])
    for row in call[:-1]:
        np.testing.assert_array_equal(whole.frames[FUNCTIONALS][row], other.frames[FUNCTIONALS][row])


def test_a_clip_that_was_left_out_is_an_error() -> None:
    data = examples()
    with pytest.raises(ValueError, match="left out or dealt twice"):
        heard_in_calls(data, Adaptation(reference_of_training(data), 1.0), deal(data, np.random.default_rng(0))[:-1])
