import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.audio import (
    BUCKET_MARGIN,
    MAX_UTTERANCE,
    MIN_UTTERANCE,
    SAMPLE_RATE_HZ,
    WHISPER_WINDOW,
    bucket_length,
    frame_count,
    ms_from_samples,
    pad_to,
    samples_from_ms,
)

LENGTHS = st.integers(MIN_UTTERANCE, MAX_UTTERANCE)


@given(LENGTHS)
def test_a_bucket_leaves_its_margin_and_fits_the_window(samples: int) -> None:
    bucket = bucket_length(samples)
    assert samples + BUCKET_MARGIN <= bucket <= WHISPER_WINDOW
    assert bucket % SAMPLE_RATE_HZ == 0


@given(LENGTHS, LENGTHS)
def test_a_longer_utterance_has_no_shorter_bucket(one: int, other: int) -> None:
    short, long = sorted((one, other))
    assert bucket_length(short) <= bucket_length(long)


def test_there_are_few_buckets() -> None:
    assert len({bucket_length(samples) for samples in range(MIN_UTTERANCE, MAX_UTTERANCE + 1, 400)}) <= 12


@pytest.mark.parametrize("samples", [0, -1, WHISPER_WINDOW + 1])
def test_what_is_no_utterance_has_no_bucket(samples: int) -> None:
    with pytest.raises(ValueError, match="an utterance"):
        bucket_length(samples)


@given(st.integers(0, 10**9))
def test_milliseconds_and_back(samples: int) -> None:
    assert samples_from_ms(ms_from_samples(samples)) == samples


@given(st.integers(1, 10_000), st.integers(1, 400))
def test_every_sample_lies_in_a_frame(samples: int, hop: int) -> None:
    count = frame_count(samples, hop)
    assert (count - 1) * hop < samples <= count * hop


def test_padding_is_silence_behind() -> None:
    padded = pad_to(np.ones(3, np.float32), 5)
    assert padded.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert padded.dtype == np.float32
