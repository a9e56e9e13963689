"""A clip is cut as live audio is: the same segmenter, held against the daemon's own session."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.config_sections import EndpointingConfig
from daemon.messages import Utterance
from daemon.session import Session, SpeechProbabilities
from model.audio import MAX_UTTERANCE, MIN_UTTERANCE, POST_PAD, PRE_PAD, VAD_WINDOW, Samples, pad_to
from model.recording import read_mono
from model.segmenter import Endpointing
from model.vad import SpeechDetector
from tests.fakes import ScriptedDetector, judged, silence, voice
from train import cutting
from train.cutting import cut_by, cut_clip

ASSETS = Path(__file__).parents[1] / "assets"
UTTERANCES = {"angry_words": 1, "flat_words": 1, "hello_3s": 1, "silence_noise": 0, "two_sentences": 2}


def live(samples: Samples, detector: SpeechProbabilities, edges: Sequence[int] = ()) -> list[Utterance]:
    """The utterances of a stream that arrives cut at `edges`."""
    rules = Endpointing(**EndpointingConfig().model_dump())
    session = Session([detector], rules)
    outputs = [output for chunk in np.split(samples, sorted(edges)) for output in judged(session, [chunk])]
    return [output for output in [*outputs, *session.close()] if isinstance(output, Utterance)]


def joined(samples: Samples, utterances: Sequence[Utterance]) -> Samples:
    """From the first utterance to the last; a stream that ends inside a window fills it with silence."""
    if utterances:
        whole = np.concatenate([samples, np.zeros(VAD_WINDOW, np.float32)])
        samples = whole[utterances[0].start : utterances[-1].end]
    samples = samples[:MAX_UTTERANCE]
    return pad_to(samples, max(len(samples), MIN_UTTERANCE))


def scored(utterance: Utterance) -> Samples:
    return pad_to(utterance.audio, max(len(utterance.audio), MIN_UTTERANCE))


@pytest.mark.parametrize("chunk", [160, 511, 16_000])
@pytest.mark.parametrize("name", UTTERANCES)
def test_a_recording_is_cut_as_it_is_live(name: str, chunk: int) -> None:
    samples = read_mono(ASSETS / f"{name}.flac")
    utterances = live(samples, SpeechDetector(), range(chunk, len(samples), chunk))
    assert len(utterances) == UTTERANCES[name]
    cut = cut_clip(samples)
    if len(utterances) == 1:
        np.testing.assert_array_equal(cut, utterances[0].audio)
    else:
        np.testing.assert_array_equal(cut, joined(samples, utterances))


@pytest.mark.parametrize("cut_off", [0, 1, 300])
def test_a_clip_that_ends_in_speech_is_cut_as_it_is_live(cut_off: int) -> None:
    """The last window is filled with silence in both."""
    samples = voice(1.5)[: 40 * VAD_WINDOW - cut_off]
    (utterance,) = live(samples, SpeechDetector())
    np.testing.assert_array_equal(cut_clip(samples), utterance.audio)


@st.composite
def clips(draw: st.DrawFn) -> tuple[Samples, list[float], list[int]]:
    """A clip whose every sample tells its position, its speech probabilities, and the edges of its chunks."""
    levels = st.one_of(st.sampled_from([0.0, 0.34, 0.36, 0.49, 0.51, 0.9]), st.floats(0, 1))
    runs = draw(st.lists(st.tuples(levels, st.integers(1, 40)), min_size=1, max_size=10))
    runs += draw(st.lists(st.tuples(levels, st.integers(1, 700)), max_size=2))
    script = [level for level, count in runs for _ in range(count)]
    length = len(script) * VAD_WINDOW - draw(st.integers(0, VAD_WINDOW - 1))
    edges = draw(st.lists(st.integers(0, length), max_size=20))
    return np.arange(1, length + 1, dtype=np.float32), script, edges


@given(clip=clips())
@settings(max_examples=150, deadline=None)
def test_any_probabilities_cut_a_clip_as_they_cut_a_stream(clip: tuple[Samples, list[float], list[int]]) -> None:
    samples, script, edges = clip
    utterances = live(samples, ScriptedDetector(script), edges)
    cut = cut_by(samples, np.array(script, np.float32))
    if len(utterances) == 1:
        np.testing.assert_array_equal(cut, scored(utterances[0]))
    else:
        np.testing.assert_array_equal(cut, joined(samples, utterances))


def test_a_long_pause_does_not_break_a_clip() -> None:
    script = [0.0] * 10 + [0.9] * 20 + [0.0] * 30 + [0.9] * 20 + [0.0] * 30
    samples = np.arange(len(script) * VAD_WINDOW, dtype=np.float32)
    assert len(live(samples, ScriptedDetector(script))) == 2
    cut = cut_by(samples, np.array(script, np.float32))
    assert (cut[0], cut[-1]) == (10 * VAD_WINDOW - PRE_PAD, 80 * VAD_WINDOW + POST_PAD - 1)


def test_a_click_before_the_speech_is_left_out() -> None:
    script = [0.9] * 2 + [0.0] * 30 + [0.9] * 10 + [0.0] * 30 + [0.9] * 2
    samples = np.arange(len(script) * VAD_WINDOW, dtype=np.float32)
    cut = cut_by(samples, np.array(script, np.float32))
    assert (cut[0], cut[-1]) == (32 * VAD_WINDOW - PRE_PAD, 42 * VAD_WINDOW + POST_PAD - 1)


def test_real_speech_keeps_its_margins() -> None:
    speech = voice(1.0)
    cut = cut_clip(np.concatenate([silence(1.0), speech, silence(1.0)]))
    assert len(speech) - VAD_WINDOW < len(cut) <= len(speech) + PRE_PAD + POST_PAD + 4 * VAD_WINDOW
    assert np.abs(cut).max() == np.abs(speech).max()
    np.testing.assert_array_equal(cut[: PRE_PAD - 2 * VAD_WINDOW], 0.0)


def test_a_clip_without_speech_is_kept_whole() -> None:
    noise = np.random.default_rng(1).normal(0, 1e-4, 20_801).astype(np.float32)
    np.testing.assert_array_equal(cut_clip(noise), noise)


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.1])
def test_a_clip_of_next_to_nothing_is_padded(seconds: float) -> None:
    np.testing.assert_array_equal(cut_clip(silence(seconds)), np.zeros(MIN_UTTERANCE, np.float32))


def test_a_clip_is_no_longer_than_what_is_scored() -> None:
    assert len(cut_clip(silence(21.0))) == MAX_UTTERANCE
    windows = 2 * MAX_UTTERANCE // VAD_WINDOW
    samples = np.arange(windows * VAD_WINDOW, dtype=np.float32)
    cut = cut_by(samples, np.full(windows, 0.9, np.float32))
    np.testing.assert_array_equal(cut, samples[:MAX_UTTERANCE])


def test_the_rules_decide_the_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the cache's names hold (`encoder_key`) is what cuts."""
    script = np.array([0.0] * 10 + [0.45] * 20 + [0.0] * 30, np.float32)
    samples = np.arange(len(script) * VAD_WINDOW, dtype=np.float32)
    assert len(cut_by(samples, script)) == len(samples)
    monkeypatch.setattr(cutting, "RULES", replace(cutting.RULES, onset=0.4))
    assert len(cut_by(samples, script)) == PRE_PAD + 20 * VAD_WINDOW + POST_PAD


def test_a_missing_probability_is_refused() -> None:
    with pytest.raises(ValueError, match="513 samples have 2 windows, got 1"):
        cut_by(np.zeros(513, np.float32), np.zeros(1, np.float32))


def test_a_failed_detector_is_not_silence() -> None:
    with pytest.raises(ValueError, match="got nan"):
        cut_by(np.zeros(512, np.float32), np.full(1, np.nan, np.float32))
