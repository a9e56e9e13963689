"""What encoders are fed is what `transformers` itself would feed them: mel frames, standardised audio, tokens."""

from pathlib import Path

import numpy as np
import pytest
from faster_whisper.feature_extractor import FeatureExtractor
from transformers import (
    PreTrainedTokenizerFast,
    RobertaTokenizerFast,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from model.audio import SAMPLE_RATE_HZ, WHISPER_WINDOW, Samples, bucket_length, pad_to
from model.features import standardise
from model.recording import read_mono
from model.text import MAX_TOKENS, TextTokenizer
from tests.model.tiny_audio import relative
from tests.model.tiny_text import TEXTS, Family, write_tokenizer

ASSETS = Path(__file__).parents[1] / "assets"
LIMIT = 1e-5


@pytest.fixture(scope="module")
def speech() -> Samples:
    return read_mono(ASSETS / "angry_words.flac")


@pytest.mark.parametrize("bands", [80, 128])
@pytest.mark.parametrize("whole_window", [False, True])
def test_mel_frames(speech: Samples, bands: int, whole_window: bool) -> None:
    """As `model.whisper` takes them; large-v3 has 128 bands. In its numpy form the extractor computes in float64."""
    padded = pad_to(speech, WHISPER_WINDOW if whole_window else bucket_length(len(speech)))
    ours = FeatureExtractor(feature_size=bands)(padded, padding=0)
    theirs = WhisperFeatureExtractor(feature_size=bands)  # type: ignore[no-untyped-call]
    called = theirs(padded, sampling_rate=SAMPLE_RATE_HZ, padding="longest", truncation=False, return_tensors="np")
    assert ours.shape == (bands, len(padded) // 160)
    assert relative(ours, called.input_features[0]) <= LIMIT
    np.testing.assert_allclose(ours, theirs._np_extract_fbank_features(padded[None], "cpu")[0], atol=LIMIT)


@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_standardised_audio(speech: Samples, offset: float) -> None:
    """In a padded batch too: what is padded does not count into an utterance's mean and variance."""
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)  # type: ignore[no-untyped-call]
    audio = [speech + np.float32(offset), speech[:7000] - np.float32(offset), np.zeros(400, np.float32)]
    theirs = extractor(audio, sampling_rate=SAMPLE_RATE_HZ, padding=True, return_tensors="np").input_values
    for samples, expected in zip(audio, theirs, strict=True):
        found = standardise(samples)
        np.testing.assert_allclose(found, expected[: len(samples)], atol=LIMIT * max(1.0, float(np.abs(found).max())))


@pytest.mark.parametrize("family", ["roberta", "modernbert"])
def test_tokens(family: Family, tmp_path: Path) -> None:
    """Special tokens, padding masks, and the cut of a text that is too long."""
    path = tmp_path / "tokenizer.json"
    write_tokenizer(family, path)
    kind = RobertaTokenizerFast if family == "roberta" else PreTrainedTokenizerFast
    pad = "<pad>" if family == "roberta" else "[PAD]"
    theirs = kind(tokenizer_file=str(path), pad_token=pad)
    texts = [*TEXTS, "so " * 400, "Ünïcode — and \n lines", "NEWS!!!"]
    expected = theirs(
        texts,
        padding=True,
        truncation=True,
        max_length=MAX_TOKENS,
        return_special_tokens_mask=True,
        return_tensors="np",
    )
    found = TextTokenizer(path).encode(texts)
    mask = expected["attention_mask"] == 1
    assert found.ids.shape[1] == MAX_TOKENS
    np.testing.assert_array_equal(found.mask, mask)
    np.testing.assert_array_equal(found.ids[mask], expected["input_ids"][mask])
    np.testing.assert_array_equal(found.keep[mask], expected["special_tokens_mask"][mask] == 0)
