"""One stream, cut the same way however its audio arrives."""

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.messages import Utterance
from daemon.session import Ahead, ChannelStream, Output, Previews, Session, SpeechResumed, SpeechStarted
from model.audio import MAX_UTTERANCE, POST_PAD, PRE_PAD, SAMPLE_RATE_HZ, VAD_WINDOW, Samples
from model.segmenter import Endpointing
from tests.fakes import ScriptedDetector, judged

RULES = Endpointing()
INTERIM = SAMPLE_RATE_HZ // 2


def ramp(length: int) -> Samples:
    """Audio whose every sample tells its own position."""
    return np.arange(length, dtype=np.float32)


def stream(script: list[float], interim: int = 0, rules: Endpointing = RULES, ahead: int = 0) -> ChannelStream:
    return ChannelStream(0, ScriptedDetector(script), rules, Previews(interim, ahead))


def utterances(outputs: list[Output]) -> list[Utterance]:
    return [output for output in outputs if isinstance(output, Utterance)]


def feed(to: ChannelStream, samples: Samples) -> list[Output]:
    to.push(samples)
    return to.judge() if to.due else []


def described(outputs: list[Output]) -> list[tuple[object, ...]]:
    """Outputs as values that compare equal, the audio included."""
    values: list[tuple[object, ...]] = []
    for output in outputs:
        if isinstance(output, SpeechStarted):
            values.append((output.channel, output.start))
            continue
        if isinstance(output, SpeechResumed):
            values.append(("resumed", output.channel, output.index))
            continue
        o = output.utterance if isinstance(output, Ahead) else output
        kind = type(output).__name__
        values.append((kind, o.channel, o.index, o.start, o.end, o.interim, o.decided, o.audio.tobytes()))
    return values


def test_an_utterance_holds_its_own_samples() -> None:
    fed = stream([0.0] * 20 + [0.9] * 30)
    outputs = feed(fed, ramp(100 * VAD_WINDOW))
    start, end = 20 * VAD_WINDOW - PRE_PAD, 50 * VAD_WINDOW + POST_PAD
    assert outputs[0] == SpeechStarted(0, start)
    (utterance,) = utterances(outputs)
    assert (utterance.index, utterance.start, utterance.end, utterance.final) == (0, start, end, True)
    np.testing.assert_array_equal(utterance.audio, np.arange(start, end))


AHEAD = 5 * VAD_WINDOW


def test_a_pause_that_ends_an_utterance_gives_its_very_audio_ahead() -> None:
    outputs = feed(stream([0.9] * 30, ahead=AHEAD), ramp(60 * VAD_WINDOW))
    (preview,) = [output.utterance for output in outputs if isinstance(output, Ahead)]
    (final,) = utterances(outputs)
    assert outputs.index(Ahead(preview, final.decided)) < outputs.index(final)
    assert (preview.index, preview.start, preview.end, preview.final) == (final.index, final.start, final.end, True)
    np.testing.assert_array_equal(preview.audio, final.audio)
    assert preview.decided == 35 * VAD_WINDOW < final.decided


def test_every_pause_that_lasts_is_given_ahead_and_a_short_one_is_not() -> None:
    script = [0.9] * 10 + [0.0] * 7 + [0.9] * 10 + [0.0] * 4 + [0.9] * 10 + [0.0] * 30
    outputs = feed(stream(script, ahead=AHEAD), ramp(len(script) * VAD_WINDOW))
    ends = [output.utterance.end for output in outputs if isinstance(output, Ahead)]
    assert ends == [10 * VAD_WINDOW + POST_PAD, 41 * VAD_WINDOW + POST_PAD]
    assert [type(output) for output in outputs] == [SpeechStarted, Ahead, SpeechResumed, Ahead, Utterance]
    assert [utterance.end for utterance in utterances(outputs)] == ends[-1:]


@pytest.mark.parametrize("spoken", [580, 610, 613])
@pytest.mark.parametrize("silence_ms", [320, 500, 60_000])
def test_work_ahead_says_when_it_will_be_certain_at_the_longest_utterance_too(spoken: int, silence_ms: int) -> None:
    rules = Endpointing(endpoint_silence_ms=silence_ms)
    fed = stream([0.0] * 11 + [0.9] * spoken, rules=rules, ahead=AHEAD)
    outputs = feed(fed, ramp((11 + spoken + 100) * VAD_WINDOW))
    (ahead,) = [output for output in outputs if isinstance(output, Ahead)]
    (final,) = utterances(outputs)
    assert (ahead.utterance.end, ahead.certain) == (final.end, final.decided)


def test_nothing_is_given_ahead_unless_asked_for() -> None:
    outputs = feed(stream([0.9] * 30), ramp(60 * VAD_WINDOW))
    assert not [output for output in outputs if isinstance(output, Ahead)]


def test_ahead_waits_for_the_audio_that_is_kept() -> None:
    with pytest.raises(ValueError, match=f"at least {POST_PAD} samples"):
        Previews(ahead=POST_PAD - 1)


@pytest.mark.parametrize("endpoint_ms", [120, 500, 1500])
def test_the_audio_ends_a_fixed_pad_after_the_last_speech_window(endpoint_ms: int) -> None:
    fed = stream([0.9] * 30, rules=Endpointing(endpoint_silence_ms=endpoint_ms))
    (utterance,) = utterances(feed(fed, ramp(200 * VAD_WINDOW)))
    assert utterance.end == 30 * VAD_WINDOW + POST_PAD
    assert utterance.decided - utterance.end >= endpoint_ms * 16 - POST_PAD


def test_interims_lie_at_their_distance_and_restart_with_every_utterance() -> None:
    script = ([0.9] * 100 + [0.0] * 40) * 2
    found = utterances(feed(stream(script, INTERIM), ramp(len(script) * VAD_WINDOW)))
    counts = [(u.index, u.interim) for u in found]
    per_utterance = 100 * VAD_WINDOW // INTERIM
    assert counts == [(index, count) for index in (0, 1) for count in [*range(1, per_utterance + 1), 0]]
    ends = [u.end for u in found if u.index == 0 and not u.final]
    assert np.diff(ends).min() >= INTERIM


def test_close_judges_the_last_partly_filled_window() -> None:
    script = [0.0] * 10 + [0.9] * 3
    length = 12 * VAD_WINDOW + 5
    fed = stream(script)
    assert feed(fed, ramp(length)) == []
    outputs = fed.close()
    (utterance,) = utterances(outputs)
    assert utterance.end == 13 * VAD_WINDOW
    np.testing.assert_array_equal(utterance.audio[-VAD_WINDOW:], [*range(12 * VAD_WINDOW, length), *[0] * 507])


@pytest.mark.parametrize("length", [0, 1, VAD_WINDOW, 50 * VAD_WINDOW])
def test_silence_gives_nothing(length: int) -> None:
    fed = stream([])
    assert feed(fed, ramp(length)) + fed.close() == []


def test_finish_ends_the_utterance_and_the_stream_goes_on() -> None:
    fed = stream([0.9] * 100)
    (first,) = utterances(feed(fed, ramp(20 * VAD_WINDOW)) + fed.finish())
    rest = ramp(40 * VAD_WINDOW)[20 * VAD_WINDOW :]
    (second,) = utterances(feed(fed, rest) + fed.close())
    assert (first.end, second.start, second.index) == (20 * VAD_WINDOW, 20 * VAD_WINDOW, 1)


def test_a_monologue_of_forty_minutes_keeps_the_buffer_bounded() -> None:
    minutes, chunk = 40, SAMPLE_RATE_HZ
    fed = stream([0.9] * (minutes * 60 * SAMPLE_RATE_HZ // VAD_WINDOW))
    second = np.zeros(chunk, np.float32)
    found: list[Utterance] = []
    longest = 0
    for _ in range(minutes * 60):
        found += utterances(feed(fed, second))
        longest = max(longest, len(fed._buffer))
    found += utterances(fed.close())
    assert longest <= MAX_UTTERANCE + chunk + VAD_WINDOW
    assert fed.received == minutes * 60 * SAMPLE_RATE_HZ
    assert [u.index for u in found] == list(range(len(found)))
    assert [u.start for u in found[1:]] == [u.end for u in found[:-1]], "a monologue is cut without a gap"
    assert max(u.end - u.start for u in found) <= MAX_UTTERANCE


def test_forty_minutes_of_silence_keep_next_to_nothing() -> None:
    fed = stream([])
    second = np.zeros(SAMPLE_RATE_HZ, np.float32)
    for _ in range(40 * 60):
        feed(fed, second)
        assert len(fed._buffer) <= PRE_PAD + VAD_WINDOW


def test_channels_are_cut_apart() -> None:
    session = Session([ScriptedDetector([0.9] * 10), ScriptedDetector([0.0] * 30 + [0.9] * 10)], RULES)
    found = utterances(judged(session, [ramp(80 * VAD_WINDOW), -ramp(80 * VAD_WINDOW)]) + session.close())
    assert [(u.channel, u.index) for u in found] == [(0, 0), (1, 0)]
    assert found[1].audio.max() < 0 <= found[0].audio.min()


def test_a_missing_channel_is_refused() -> None:
    session = Session([ScriptedDetector([]), ScriptedDetector([])], RULES)
    with pytest.raises(ValueError, match="has 2 channels, got 1"):
        judged(session, [ramp(10)])


def test_a_detector_that_fails_is_not_silence() -> None:
    with pytest.raises(ValueError, match="got nan"):
        feed(stream([float("nan")]), ramp(3 * VAD_WINDOW))


Scripts = st.lists(
    st.tuples(st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.9]), st.integers(1, 60)), min_size=1, max_size=14
).map(lambda runs: [p for p, count in runs for _ in range(count)])


@st.composite
def chunkings(draw: st.DrawFn) -> tuple[list[float], int, list[int], list[int]]:
    """A script, the stream's length, two ways to cut it, ..."""
    script = draw(Scripts)
    length = len(script) * VAD_WINDOW - draw(st.integers(0, VAD_WINDOW - 1))
    points = st.lists(st.integers(0, length), max_size=30).map(sorted)
    return script, length, draw(points), draw(points)


def fed_in_pieces(fed: ChannelStream, audio: Samples, points: list[int], finish_at: int) -> list[Output]:
    """Feeds `audio` cut at `points`, with a `finish` at sample `finish_at`."""
    outputs: list[Output] = []
    edges = sorted({0, *points, finish_at, len(audio)})
    for begin, end in zip(edges, [*edges[1:], len(audio)], strict=True):
        if begin == finish_at:
            outputs += fed.finish()
        outputs += feed(fed, audio[begin:end])
    return outputs + fed.close()


@given(case=chunkings(), interim=st.sampled_from([0, 3000, INTERIM]), finish=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_any_chunking_gives_the_same_outputs(
    case: tuple[list[float], int, list[int], list[int]], interim: int, finish: float
) -> None:
    script, length, one, other = case
    audio = ramp(length)
    finish_at = round(finish * length)
    expected = described(fed_in_pieces(stream(script, interim), audio, one, finish_at))
    assert described(fed_in_pieces(stream(script, interim), audio, other, finish_at)) == expected


@given(
    script=Scripts,
    interim=st.sampled_from([0, 3000, INTERIM]),
    ahead=st.sampled_from([0, AHEAD, 7 * VAD_WINDOW]),
    min_speech_ms=st.sampled_from([32, 96, 250]),
    length=st.integers(1, 3 * VAD_WINDOW),
)
@settings(max_examples=150, deadline=None)
def test_windows_that_wait_for_others_make_nothing_late(
    script: list[float], interim: int, ahead: int, min_speech_ms: int, length: int
) -> None:
    """Judged when something can come of them, or each at once: the same outputs come of the same piece of audio."""
    rules = Endpointing(min_speech_ms=min_speech_ms)
    patient, eager = (stream([*script, *[0.0] * 40], interim, rules, ahead) for _ in range(2))
    audio = ramp(len(script) * VAD_WINDOW + 30 * VAD_WINDOW)
    runs = 0
    for at in range(0, len(audio), length):
        patient.push(audio[at : at + length])
        runs += patient.due
        eager.push(audio[at : at + length])
        assert described(patient.judge() if patient.due else []) == described(eager.judge())
    assert runs <= len(audio) // VAD_WINDOW
    assert described(patient.close()) == described(eager.close())


@pytest.mark.parametrize("pause", [1, 2, 3, 4])
def test_speech_that_resumes_at_the_limit_is_cut_at_once(pause: int) -> None:
    """The limit is nearer in speech than in the pause before it, by the pad."""
    longest, early = MAX_UTTERANCE // VAD_WINDOW, POST_PAD // VAD_WINDOW + 1
    for begin in range(longest - 3 * early, longest):
        script = [*[0.9] * begin, *[0.0] * pause, *[0.9] * 30]
        patient, eager = stream(script), stream(script)
        for window in np.split(ramp(len(script) * VAD_WINDOW), len(script)):
            patient.push(window)
            eager.push(window)
            assert described(patient.judge() if patient.due else []) == described(eager.judge())


@pytest.mark.parametrize(("script", "runs"), [([0.0] * 300, 100), ([0.9] * 303, 60 + 1)], ids=["silence", "speech"])
def test_windows_share_runs_of_the_detector(script: list[float], runs: int) -> None:
    """Three in silence, where the third may begin speech; five in speech, where the fifth may be worth scoring ahead."""
    detector = ScriptedDetector(script)
    calls: list[int] = []

    def detect(windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        calls.append(len(windows))
        return detector(windows)

    fed = ChannelStream(0, detect, RULES, Previews(ahead=AHEAD))
    for window in np.split(ramp(len(script) * VAD_WINDOW), len(script)):
        feed(fed, window)
    assert len(calls) == runs


@given(script=Scripts, interim=st.integers(1000, 20_000))
@settings(max_examples=60, deadline=None)
def test_interims_are_prefixes_of_the_final_utterance(script: list[float], interim: int) -> None:
    fed = stream(script, interim)
    cuts = defaultdict(list)
    for utterance in utterances(feed(fed, ramp(len(script) * VAD_WINDOW)) + fed.close()):
        cuts[utterance.index].append(utterance)
    for of_one in cuts.values():
        *interims, final = of_one
        assert final.final
        assert [u.interim for u in interims] == list(range(1, len(interims) + 1))
        assert all(u.start == final.start for u in interims)
        if final.end - final.start < MAX_UTTERANCE - 4 * SAMPLE_RATE_HZ:  # a forced cut lies before its last interims
            for u in interims:
                np.testing.assert_array_equal(u.audio, final.audio[: len(u.audio)])
