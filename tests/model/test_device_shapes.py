"""Few shapes: rounding holds what it rounds, and there are not many outcomes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.audio import MAX_UTTERANCE, MEL_HOP, MIN_UTTERANCE, bucket_length
from model.device_shapes import (
    ROWS,
    SHORTEST_SPEECH,
    SPEECH_HOP,
    ensemble_profile,
    filled,
    frames_for,
    rows_for,
    speech_frames_for,
    speech_length_for,
    speech_profile,
    text_profile,
    tokens_for,
    whisper_profile,
)
from model.features import FUNCTIONALS_STEPS
from model.spec import EncoderSpec
from model.text import MAX_TOKENS

STACKS = st.integers(1, 16)
KINDS = ("whisper-onnx", "prosody", "functionals", "speech-transformer", "text-transformer")


def frames_of(samples: int) -> int:
    """What a front end of hop 320 and field 400 makes of so many samples."""
    return (samples - SHORTEST_SPEECH) // SPEECH_HOP + 1


def test_rows_are_few() -> None:
    assert [rows_for(count) for count in (1, 2, 3, 5, 8, 9, 32, 33, 65)] == [1, 2, 4, 8, 8, 16, 32, 64, 96]
    assert {rows_for(count) for count in range(1, 33)} == set(ROWS)
    with pytest.raises(ValueError, match="at least one utterance, got 0"):
        rows_for(0)


@given(st.integers(SHORTEST_SPEECH, MAX_UTTERANCE), STACKS)
def test_a_speech_batch_holds_its_longest_and_gives_whole_steps(samples: int, stack: int) -> None:
    length = speech_length_for(samples, stack)
    assert samples <= length < samples + (25 + stack) * SPEECH_HOP + SPEECH_HOP
    assert frames_of(length) == speech_frames_for(samples, stack) >= frames_of(samples)
    assert frames_of(length) % stack == 0


def test_there_are_few_lengths() -> None:
    samples = range(MIN_UTTERANCE, MAX_UTTERANCE + 1, 160)
    assert len({speech_length_for(each, 2) for each in samples}) <= 40
    assert len({frames_for(count, 8) for count in range(1, 1001)}) <= 15
    assert len({tokens_for(count) for count in range(MAX_TOKENS + 1)}) == 8
    assert max(map(tokens_for, range(MAX_TOKENS + 1))) == MAX_TOKENS


@given(st.integers(0, 4000), STACKS)
def test_frames_are_whole_steps_and_at_most_half_as_many_again(count: int, stack: int) -> None:
    length = frames_for(count, stack)
    assert length >= max(1, count)
    assert length % stack == 0
    assert length // stack <= 1.5 * max(1, -(-count // stack))
    assert frames_for(length, stack) == length


def test_functionals_are_not_rounded() -> None:
    assert frames_for(FUNCTIONALS_STEPS, 1) == FUNCTIONALS_STEPS


def test_filling_repeats_the_last_row() -> None:
    rows = np.arange(6).reshape(3, 2)
    assert filled(rows, 3) is rows
    np.testing.assert_array_equal(filled(rows, 5), [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]])


def spec_of(kind: str) -> EncoderSpec:
    assert kind in KINDS
    states = (1, 2) if kind == "whisper-onnx" else ()
    stack = 1 if kind in ("functionals", "text-transformer") else 4
    return EncoderSpec(kind, kind, 8, stack, states=states)  # type: ignore[arg-type]  # each is one of the literal's


@given(st.integers(MIN_UTTERANCE, MAX_UTTERANCE), st.integers(1, 16), st.integers(1, MAX_TOKENS))
def test_profiles_hold_every_shape(samples: int, count: int, tokens: int) -> None:
    rows, speech = rows_for(count), spec_of("speech-transformer")
    used = [
        (speech_profile(speech, 16)["audio"], (rows, speech_length_for(samples, speech.stack))),
        (text_profile(16)["ids"], (rows, tokens_for(tokens))),
        (whisper_profile(80, 16)["mels"], (rows, 80, bucket_length(samples) // MEL_HOP)),
    ]
    frames = {
        "whisper-onnx": frames_for(-(-samples // 320), 4),
        "prosody": frames_for(-(-samples // 160), 4),
        "functionals": FUNCTIONALS_STEPS,
        "speech-transformer": speech_frames_for(samples, 4),
        "text-transformer": tokens_for(tokens),
    }
    profile = ensemble_profile(tuple(map(spec_of, KINDS)), 16)
    for kind, length in frames.items():
        used += [(profile[kind], (rows, length, 8)), (profile[f"{kind}_mask"], (rows, length))]
    for (least, usual, most), shape in used:
        assert all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)), (shape, most)
        assert all(low <= size <= high for low, size, high in zip(least, usual, most, strict=True))


def test_an_encoder_without_a_mask_has_none_in_its_profile() -> None:
    equal = EncoderSpec("base", "speech-transformer", 8, 1, equal_lengths=True)
    assert set(speech_profile(equal, 4)) == {"audio"}
    assert set(speech_profile(spec_of("speech-transformer"), 4)) == {"audio", "audio_mask"}
