import numpy as np
import pytest

from model.labels import CLASS_INDEX
from tests.train.synthetic import ENCODERS, make_examples
from train.dataset import TEXT, Examples
from train.pairing import Pairing, TextBank

CLASSES = ("angry", "sad", "happy", "neutral")
EMOTIONAL = {"angry", "sad", "happy"}
WEIGHT = 0.4


@pytest.fixture
def bank() -> TextBank:
    """Two sentences a class; each frame holds 100 + the class' index."""
    return TextBank(
        {
            name: [np.full((length, ENCODERS[TEXT].dim), 100 + CLASS_INDEX[name], np.float16) for length in (1, 3)]
            for name in CLASSES
        }
    )


@pytest.fixture
def examples() -> Examples:
    return make_examples((*CLASSES, None) * 60)


def draw(bank: TextBank, examples: Examples, seed: int = 0, **pairing: float) -> Examples:
    return bank.pair(examples, Pairing(**{"own": 0.0, "words_weight": WEIGHT, **pairing}), np.random.default_rng(seed))


def words_of(examples: Examples) -> list[str | None]:
    """Class of each example's sentence, None where it keeps its own words."""
    names = {100 + index: name for name, index in CLASS_INDEX.items()}
    return [names.get(int(rows[0, 0])) if len(rows) else None for rows in examples.frames[TEXT]]


def test_own_words_change_nothing(bank: TextBank, examples: Examples) -> None:
    paired = draw(bank, examples, own=1.0)
    assert all(a is b for a, b in zip(paired.frames[TEXT], examples.frames[TEXT], strict=True))
    np.testing.assert_array_equal(paired.targets, examples.targets)


def test_no_words_leave_the_target_alone(bank: TextBank, examples: Examples) -> None:
    paired = draw(bank, examples, none=1.0)
    assert {rows.shape for rows in paired.frames[TEXT]} == {(0, ENCODERS[TEXT].dim)}
    np.testing.assert_array_equal(paired.targets, examples.targets)


def test_neutral_words_leave_the_target_alone(bank: TextBank, examples: Examples) -> None:
    paired = draw(bank, examples, neutral=1.0)
    assert set(words_of(paired)) == {"neutral"}
    assert {len(rows) for rows in paired.frames[TEXT]} == {1, 3}
    np.testing.assert_array_equal(paired.targets, examples.targets)


def test_congruent_words_have_the_voice_s_class(bank: TextBank, examples: Examples) -> None:
    paired = draw(bank, examples, congruent=1.0)
    assert words_of(paired) == [*CLASSES, None] * 60
    untouched = [row for row, name in enumerate(words_of(paired)) if name in (None, "neutral")]
    np.testing.assert_array_equal(paired.targets[untouched], examples.targets[untouched])


def test_emotional_words_move_the_target_by_their_weight(bank: TextBank, examples: Examples) -> None:
    paired = draw(bank, examples, any=1.0)
    words = words_of(paired)
    assert set(words) == EMOTIONAL
    spoken = np.eye(8)[[CLASS_INDEX[str(name)] for name in words]]
    np.testing.assert_allclose(paired.targets, (1 - WEIGHT) * examples.targets + WEIGHT * spoken, atol=1e-6)


def test_kinds_come_as_often_as_the_recipe_says(bank: TextBank, examples: Examples) -> None:
    many = examples.subset(np.tile(np.arange(len(examples)), 10))
    paired = draw(bank, many, own=0.5, none=0.2, neutral=0.3)
    empty = np.mean([len(rows) == 0 for rows in paired.frames[TEXT]])
    assert empty == pytest.approx(0.2, abs=0.04)
    assert np.mean([name == "neutral" for name in words_of(paired)]) == pytest.approx(0.3, abs=0.04)


def test_a_draw_is_new_every_time_and_repeats_with_its_seed(bank: TextBank, examples: Examples) -> None:
    mixed = {"own": 0.2, "none": 0.2, "neutral": 0.2, "congruent": 0.2, "any": 0.2}
    first, again, other = (draw(bank, examples, seed, **mixed) for seed in (1, 1, 2))
    assert words_of(first) == words_of(again)
    np.testing.assert_array_equal(first.targets, again.targets)
    assert words_of(first) != words_of(other)


def test_examples_themselves_are_left_alone(bank: TextBank, examples: Examples) -> None:
    before, own = examples.targets.copy(), list(examples.frames[TEXT])
    paired = draw(bank, examples, any=1.0)
    np.testing.assert_array_equal(examples.targets, before)
    assert all(a is b for a, b in zip(examples.frames[TEXT], own, strict=True))
    assert paired.ids == examples.ids
    assert paired.frames["whisper"] is examples.frames["whisper"]


def test_a_class_without_sentences_keeps_its_own_words(examples: Examples) -> None:
    bank = TextBank({"angry": [np.full((1, 7), 100, np.float16)], "sad": [], "neutral": []})
    assert words_of(draw(bank, examples, congruent=1.0)) == ["angry", None, None, None, None] * 60
    assert set(words_of(draw(bank, examples, any=1.0))) == {"angry"}
    assert set(words_of(draw(bank, examples, neutral=1.0))) == {None}


@pytest.mark.parametrize("pairing", [{"own": 0.5}, {"own": 1.0, "any": 0.1}])
def test_probabilities_that_do_not_sum_to_one_are_refused(pairing: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must sum to 1, got"):
        Pairing(**pairing)
