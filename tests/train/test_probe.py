from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from model.labels import CLASSES
from tests.train.synthetic import RECIPES, TRAINED, make_examples
from train import probe
from train.config import load_recipe
from train.dataset import Examples
from train.metrics import accuracy
from train.probe import STRENGTHS, Probe, audio_modalities, pooled


def test_pooling_takes_mean_and_deviation_over_time() -> None:
    examples = make_examples(("angry", "sad"))
    frames = {"prosody": [np.array([[1, 2], [3, 6]], np.float16), np.array([[5, 5]], np.float16)]}
    rows = pooled(replace(examples, frames=frames), ["prosody"])
    assert rows.tolist() == [[2, 4, 1, 2], [5, 5, 0, 0]]


def test_a_probe_reads_every_audio_encoder_and_no_words() -> None:
    encoders = load_recipe(RECIPES / "default.toml").encoder_specs()
    assert audio_modalities(encoders) == ("whisper", "prosody")


def test_a_probe_learns_from_frames() -> None:
    train, dev, test = (make_examples(TRAINED * count, seed=seed) for seed, count in enumerate((20, 5, 10)))
    assert accuracy(test.intended, Probe.fit(train, dev, ["prosody"]).guesses(test)) > 0.8


def test_a_probe_of_a_corpus_without_actors_learns_dominant_votes() -> None:
    train, test = make_examples((*TRAINED, None) * 20), make_examples(TRAINED * 10, seed=1)
    unacted = replace(train, intended=np.full(len(train), -1))
    assert accuracy(test.intended, Probe.fit(unacted, unacted, ["prosody"]).guesses(test)) > 0.8


def test_the_development_speakers_choose_how_hard_a_probe_is_shrunk() -> None:
    """Labels that the development set contradicts: the hardest shrinking is the least wrong."""
    train = make_examples(TRAINED * 20)
    for dev in (train, replace(train, intended=np.roll(train.intended, 1))):
        chosen = Probe.fit(train, dev, ["prosody"], strengths=(1e-6, 1.0))
        alone = [Probe.fit(train, dev, ["prosody"], strengths=[strength]) for strength in (1e-6, 1.0)]
        scores = [accuracy(dev.intended, probe.guesses(dev)) for probe in alone]
        assert accuracy(dev.intended, chosen.guesses(dev)) == pytest.approx(max(scores))
        assert chosen.strength in (1e-6, 1.0)


def test_a_probe_of_one_class_guesses_that_class() -> None:
    """As a fold's other speakers may have no other; logistic regression itself refuses."""
    train, dev = make_examples(("sad",) * 12), make_examples(TRAINED * 5, seed=1)
    found = Probe.fit(train, dev, ["prosody"])
    assert found.guesses(dev).tolist() == [CLASSES.index("sad")] * len(dev)
    assert found.strength in STRENGTHS


def test_of_many_clips_some_are_read_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """And any number is guessed, some at a time, as at once."""
    train, dev = make_examples(TRAINED * 20), make_examples(TRAINED * 5, seed=9)
    whole = Probe.fit(train, dev, ("prosody",))
    guesses = whole.guesses(dev)
    monkeypatch.setattr(probe, "_GUESSED", 3)
    np.testing.assert_array_equal(whole.guesses(dev), guesses)
    monkeypatch.setattr(probe, "LARGEST", 30)
    sizes: list[int] = []

    def counted(part: Examples, names: Sequence[str]) -> npt.NDArray[np.float32]:
        sizes.append(len(part))
        return pooled(part, names)

    monkeypatch.setattr(probe, "pooled", counted)
    Probe.fit(train, dev, ("prosody",))
    assert sizes == [30, 20]
