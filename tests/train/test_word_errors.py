from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.model.tiny import write_tiny_text_encoder
from tests.train.synthetic import ENCODERS, TRAINED, make_examples, make_recipe, make_training_set
from tests.train.tiny_run import tiny_recipe, write_corpora
from train.augment_config import WordErrorsConfig
from train.dataset import TEXT, HalfFrames
from train.prepare import prepare
from train.stages.members import draw_training
from train.word_errors import Misheard, mishear

TRANSCRIPT = "it was eleven o'clock when the last of them had left the house and gone home"
VOCABULARY = ("airplane", "jacket", "tie")
OWN = {"own": 1.0, "none": 0.0, "neutral": 0.0, "congruent": 0.0, "any": 0.0, "words_weight": 0.0}


def frames(value: float) -> HalfFrames:
    return np.full((2, ENCODERS["text"].dim), value, np.float16)


def test_words_are_lost_and_exchanged_as_often_as_asked() -> None:
    config, words = WordErrorsConfig(deletion=0.2, substitution=0.3), TRANSCRIPT.split()
    heard = [mishear(TRANSCRIPT, VOCABULARY, config, number).split() for number in range(300)]
    assert np.mean([len(variant) for variant in heard]) == pytest.approx(0.8 * len(words), rel=0.05)
    exchanged = np.mean([sum(word in VOCABULARY for word in variant) for variant in heard])
    assert exchanged == pytest.approx(0.3 * len(words), rel=0.1)
    assert {word for variant in heard for word in variant} == {*words, *VOCABULARY}


def test_the_transcript_and_the_number_decide_a_variant() -> None:
    config = WordErrorsConfig(deletion=0.3, substitution=0.3)
    first = [mishear(TRANSCRIPT, VOCABULARY, config, number) for number in range(8)]
    assert first == [mishear(TRANSCRIPT, VOCABULARY, config, number) for number in range(8)]
    assert len(set(first)) == len(first)


def test_nothing_is_misheard_in_silence_or_without_errors() -> None:
    assert mishear("", VOCABULARY, WordErrorsConfig(deletion=0.5, substitution=0.5), 0) == ""
    assert mishear(TRANSCRIPT, VOCABULARY, WordErrorsConfig(deletion=0.0, substitution=0.0), 0) == TRANSCRIPT
    assert mishear(TRANSCRIPT, (), WordErrorsConfig(deletion=0.0, substitution=1.0), 0) == TRANSCRIPT


def test_a_draw_gives_each_kind_of_text_its_share() -> None:
    examples = make_examples(TRAINED * 500)
    config = WordErrorsConfig(errors=0.3, empty=0.1, variants=2)
    misheard = Misheard({TEXT: {name: [frames(50.0), frames(60.0)] for name in examples.ids}}, config)
    drawn = misheard.draw(examples, np.random.default_rng(0))
    rows = list(zip(examples.frames[TEXT], drawn.frames[TEXT], strict=True))
    shares = {
        "empty": np.mean([len(new) == 0 for _, new in rows]),
        "first": np.mean([len(new) > 0 and new[0, 0] == 50.0 for _, new in rows]),
        "second": np.mean([len(new) > 0 and new[0, 0] == 60.0 for _, new in rows]),
        "own": np.mean([new is old for old, new in rows]),
    }
    assert shares == pytest.approx({"empty": 0.1, "first": 0.15, "second": 0.15, "own": 0.6}, abs=0.03)
    for name in ("whisper", "prosody"):
        assert drawn.frames[name] is examples.frames[name], "what is heard of the voice stays"
    np.testing.assert_array_equal(drawn.targets, examples.targets)


def test_all_modalities_of_text_mishear_the_same() -> None:
    examples = make_examples(TRAINED * 20)
    examples = replace(examples, frames={**examples.frames, "other": examples.frames[TEXT]})
    variants = {name: [frames(50.0), frames(60.0), frames(70.0)] for name in examples.ids}
    config = WordErrorsConfig(errors=0.6, empty=0.2, variants=3)
    drawn = Misheard({TEXT: variants, "other": variants}, config).draw(examples, np.random.default_rng(0))
    for one, other in zip(drawn.frames[TEXT], drawn.frames["other"], strict=True):
        np.testing.assert_array_equal(one, other)


def test_training_reads_misheard_words() -> None:
    data = make_training_set(make_examples(TRAINED * 5))
    recipe = make_recipe(text={"sentences_per_class": 2, **OWN})
    empty = replace(data, misheard=Misheard({TEXT: {}}, WordErrorsConfig(empty=1.0)))
    drawn = [draw_training(recipe, d, d.copies, np.random.default_rng(0)) for d in (data, empty)]
    assert any(len(words) for words in drawn[0].frames[TEXT])
    assert not any(len(words) for words in drawn[1].frames[TEXT])


def test_variants_and_copies_of_a_recipe_are_cached_apart(tmp_path: Path) -> None:
    write_corpora(tmp_path / "data")
    write_tiny_text_encoder(tmp_path / "text")
    plain = tiny_recipe(tmp_path / "text")
    words = {"errors": 0.5, "variants": 2, "deletion": 0.5, "substitution": 0.2}
    recipe = plain.model_validate(plain.model_dump() | {"augment": {"opus": 1.0, "words": words}})
    told: list[str] = []
    training = prepare(recipe, tmp_path / "data", tmp_path / "cache", lambda what, *_: told.append(what)).training
    assert training.misheard is not None
    assert set(training.misheard.frames) == {TEXT}
    assert set(training.misheard.frames[TEXT]) == set(training.train.ids)
    assert {len(variants) for variants in training.misheard.frames[TEXT].values()} == {2}
    without = prepare(plain, tmp_path / "data", tmp_path / "cache", lambda *call: None).training
    assert without.misheard is None
    assert without.content != training.content
    folders = {
        name for name in (recipe.augment.copies_name, "1") if list((tmp_path / "cache").glob(f"*-degraded-{name}-1"))
    }
    assert folders == {recipe.augment.copies_name, "1"}, "other copies are kept apart from those of the default rules"
    told.clear()
    prepare(recipe, tmp_path / "data", tmp_path / "cache", lambda what, *_: told.append(what))
    assert told == [], "features of variants are kept like any other text's"
