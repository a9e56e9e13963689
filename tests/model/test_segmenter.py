"""Endpointing: the transition table, and what holds for any probabilities."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.audio import MAX_UTTERANCE, POST_PAD, PRE_PAD, VAD_WINDOW
from model.segmenter import Cut, Endpointing, Segmenter, Started

RULES = Endpointing(onset=0.5, offset=0.35, min_speech_ms=96, endpoint_silence_ms=500)
MIN_SPEECH = 3
ENDPOINT = 16
"""The rules in windows of 32 ms."""
LONGEST = MAX_UTTERANCE // VAD_WINDOW

Mark = Started | Cut


def run(probabilities: list[float], rules: Endpointing = RULES, *, finish: bool = False) -> list[Mark]:
    segmenter = Segmenter(rules)
    marks = [mark for probability in probabilities for mark in segmenter.step(probability)]
    return marks + (segmenter.finish() if finish else [])


def cuts(marks: list[Mark]) -> list[Cut]:
    return [mark for mark in marks if isinstance(mark, Cut)]


def test_an_utterance_has_its_pads() -> None:
    marks = run([0.0] * 10 + [0.9] * 20 + [0.0] * ENDPOINT)
    start, end = 10 * VAD_WINDOW - PRE_PAD, 30 * VAD_WINDOW + POST_PAD
    assert marks == [Started(start), Cut(start, end, (30 + ENDPOINT) * VAD_WINDOW, forced=False)]


def test_speech_starts_with_the_window_that_completes_min_speech() -> None:
    segmenter = Segmenter(RULES)
    steps = [segmenter.step(0.9) for _ in range(MIN_SPEECH)]
    assert steps == [[], [], [Started(0)]]


@pytest.mark.parametrize("length", [1, MIN_SPEECH - 1])
def test_a_shorter_noise_starts_nothing(length: int) -> None:
    assert run(([0.9] * length + [0.0]) * 50, finish=True) == []


def test_the_pre_pad_does_not_reach_before_the_stream() -> None:
    assert run([0.0, 0.9, 0.9, 0.9]) == [Started(0)]


def test_the_pre_pad_does_not_reach_into_the_utterance_before() -> None:
    rules = Endpointing(endpoint_silence_ms=POST_PAD // 16)
    quiet = math.ceil(POST_PAD / VAD_WINDOW)
    first, second = cuts(run(([0.9] * 5 + [0.0] * quiet) * 2, rules))
    assert second.start == first.end


@pytest.mark.parametrize(("probability", "stays"), [(0.35, True), (0.34, False)])
def test_speech_goes_on_down_to_the_offset(probability: float, stays: bool) -> None:
    ended = cuts(run([0.9] * 5 + [probability] * (ENDPOINT + 5)))
    assert bool(ended) is not stays


@pytest.mark.parametrize(("probability", "resumes"), [(0.5, True), (0.49, False)])
def test_a_pause_ends_from_the_onset_up(probability: float, resumes: bool) -> None:
    (cut,) = cuts(run([0.9] * 5 + [0.0] * (ENDPOINT - 1) + [probability] + [0.0] * ENDPOINT))
    speech_windows = 5 + ENDPOINT if resumes else 5
    assert cut.end == speech_windows * VAD_WINDOW + POST_PAD


def test_a_pause_shorter_than_the_endpoint_ends_nothing() -> None:
    assert cuts(run(([0.9] * 5 + [0.0] * (ENDPOINT - 1)) * 10)) == []


@pytest.mark.parametrize("endpoint_ms", [120, 300, 500, 2000])
def test_the_end_of_an_utterance_does_not_depend_on_the_endpoint(endpoint_ms: int) -> None:
    (cut,) = cuts(run([0.9] * 20 + [0.0] * 100, Endpointing(endpoint_silence_ms=endpoint_ms)))
    assert cut.end == 20 * VAD_WINDOW + POST_PAD


def test_long_speech_is_cut_behind_its_quietest_window() -> None:
    probabilities = [0.9] * LONGEST
    quietest = LONGEST - 60
    probabilities[quietest] = 0.4
    probabilities[10] = 0.36
    (cut,) = cuts(run(probabilities))
    assert cut.forced
    assert cut.end == (quietest + 1) * VAD_WINDOW
    assert cut.end - cut.start <= MAX_UTTERANCE


def test_what_is_behind_a_forced_cut_opens_the_next_utterance() -> None:
    first, second = cuts(run([0.9] * (LONGEST + 50) + [0.0] * ENDPOINT))
    assert first.forced
    assert not second.forced
    assert second.start == first.end
    assert second.end == (LONGEST + 50) * VAD_WINDOW + POST_PAD


def test_a_pause_at_the_limit_ends_the_utterance_and_opens_none_of_silence() -> None:
    """The limit falls into a pause: a cut there must not leave an utterance that holds no speech."""
    speech = LONGEST - 8
    (cut,) = cuts(run([0.9] * speech + [0.0] * 100, finish=True))
    assert cut.end == speech * VAD_WINDOW + POST_PAD


def test_speech_that_ends_just_at_the_limit_leaves_no_utterance_of_silence() -> None:
    for speech in range(LONGEST - 10, LONGEST + 2):
        probabilities = [0.9] * (speech - 1) + [0.36] + [0.0] * 50
        for cut in cuts(run(probabilities, finish=True)):
            spoken = [p for p in probabilities[cut.start // VAD_WINDOW : -(-cut.end // VAD_WINDOW)] if p >= 0.35]
            assert spoken, f"{cut} of {speech} windows holds no speech"


def test_finish_cuts_what_is_open_where_it_stands() -> None:
    marks = run([0.9] * 10, finish=True)
    assert marks == [Started(0), Cut(0, 10 * VAD_WINDOW, 10 * VAD_WINDOW, forced=True)]


def test_finish_in_a_pause_keeps_the_post_pad_at_most() -> None:
    (early,) = cuts(run([0.9] * 10 + [0.0] * 2, finish=True))
    (late,) = cuts(run([0.9] * 10 + [0.0] * 10, finish=True))
    assert early.end == 12 * VAD_WINDOW
    assert late.end == 10 * VAD_WINDOW + POST_PAD


def test_finish_in_silence_forgets_a_run_that_was_beginning() -> None:
    segmenter = Segmenter(RULES)
    segmenter.step(0.9)
    segmenter.step(0.9)
    assert segmenter.finish() == []
    assert segmenter.step(0.9) == []


@pytest.mark.parametrize("probability", [math.nan, math.inf, -0.01, 1.01])
def test_a_failed_detector_is_not_silence(probability: float) -> None:
    segmenter = Segmenter(RULES)
    with pytest.raises(ValueError, match=r"lies in 0\.\.1"):
        segmenter.step(probability)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"onset": 0.3, "offset": 0.4}, "offset 0.4"),
        ({"onset": 1.0}, "onset 1.0"),
        ({"offset": 0.0}, "offset 0.0"),
        ({"endpoint_silence_ms": 119}, "got 119"),
        ({"min_speech_ms": 0}, "got 0"),
        ({"min_speech_ms": 20_000}, "got 20000"),
    ],
)
def test_rules_that_cannot_work_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Endpointing(**wrong)  # type: ignore[arg-type]  # the table mixes int and float


Runs = st.lists(
    st.tuples(st.sampled_from([0.0, 0.2, 0.35, 0.45, 0.5, 0.8, 1.0]), st.integers(1, 700)), min_size=1, max_size=12
)


@given(runs=Runs, endpoint_ms=st.integers(120, 3000), min_speech_ms=st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_any_probabilities_give_ordered_utterances_within_bounds(
    runs: list[tuple[float, int]], endpoint_ms: int, min_speech_ms: int
) -> None:
    probabilities = [p for p, count in runs for _ in range(count)]
    rules = Endpointing(min_speech_ms=min_speech_ms, endpoint_silence_ms=endpoint_ms)
    segmenter = Segmenter(rules)
    marks: list[Mark] = []
    for position, probability in enumerate(probabilities, start=1):
        needed = segmenter.needed_from
        for mark in segmenter.step(probability):
            assert mark.start >= needed, "audio that an output refers to may have been freed"
            assert not isinstance(mark, Cut) or mark.end <= mark.decided == position * VAD_WINDOW
            marks.append(mark)
        assert segmenter.needed_from >= needed
    marks += segmenter.finish()
    assert not segmenter.speaking
    before = 0
    for cut in cuts(marks):
        assert before <= cut.start < cut.end <= len(probabilities) * VAD_WINDOW
        assert cut.end - cut.start <= MAX_UTTERANCE
        before = cut.end
