import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.audio import VAD_WINDOW
from model.vad import SpeechDetector, speech_probabilities
from tests.fakes import silence, voice

SPEECH = np.concatenate([silence(0.5), voice(1.5), silence(0.5)])
WINDOWS = SPEECH[: len(SPEECH) // VAD_WINDOW * VAD_WINDOW].reshape(-1, VAD_WINDOW)


def test_hears_a_voice_and_no_silence() -> None:
    probabilities = speech_probabilities(SPEECH)
    assert probabilities[20:60].max() > 0.5
    assert probabilities[:12].max() < 0.5


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=12))
def test_any_split_gives_the_same_probabilities(sizes: list[int]) -> None:
    detector, parts, begin = SpeechDetector(), [], 0
    for size in [*sizes, len(WINDOWS)]:
        parts.append(detector(WINDOWS[begin : begin + size]))
        begin += size
    np.testing.assert_allclose(np.concatenate(parts), SpeechDetector()(WINDOWS), atol=1e-6)


def test_a_window_sees_the_end_of_the_window_before() -> None:
    """Silero reads 64 samples of context: without them, the split above would change the probabilities."""
    changed = WINDOWS.copy()
    changed[19, -64:] = 0.0
    before, after = SpeechDetector()(WINDOWS[:21]), SpeechDetector()(changed[:21])
    assert np.array_equal(before[:19], after[:19])
    assert before[20] != after[20]


def test_streams_share_the_network_and_no_state() -> None:
    first, second = SpeechDetector(), SpeechDetector()
    first(WINDOWS)
    np.testing.assert_array_equal(second(WINDOWS), SpeechDetector()(WINDOWS))


def test_refuses_windows_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"speech windows are \[N, 512\], got \[3, 480\]"):
        SpeechDetector()(np.zeros((3, 480), np.float32))
