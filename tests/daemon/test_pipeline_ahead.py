"""Utterances that are scored in the silence that ends them, before it is certain that it does."""

import asyncio

import pytest

from daemon.errors import UpstreamError
from model.audio import SAMPLE_RATE_HZ, VAD_WINDOW, ms_from_samples
from tests.daemon.playing import AHEAD, PAUSE, SPEECH, finals, playing
from tests.fakes import ScriptedScorer
from tests.waiting import until


async def test_an_utterance_is_scored_once_in_the_silence_that_ends_it() -> None:
    async with playing(SPEECH + PAUSE, ahead=AHEAD) as played:
        await played.feed(len(SPEECH) + 6)
        await until(lambda: bool(played.scorer.ahead))
        assert finals(played) == []
        await played.feed(len(PAUSE) - 6)
        await played.finish()
    (event,) = finals(played)
    assert played.scorer.seen == []
    (ahead,) = played.scorer.ahead
    assert played.scorer.ahead_s == [pytest.approx((16 - 6) * VAD_WINDOW / SAMPLE_RATE_HZ)], (
        "what is left of the silence, of which six windows are here"
    )
    assert (ahead.start, ahead.end) == (event.utterance.start, event.utterance.end)
    assert event.scores.transcript is not None
    assert event.scores.latency.total < 100  # what is left to wait for once the silence has ended the utterance
    endpoint = event.utterance.decided - event.utterance.end
    assert event.scores.latency.endpoint == ms_from_samples(endpoint)


async def test_speech_that_goes_on_is_scored_whole() -> None:
    script = SPEECH + [0.0] * 7 + SPEECH + PAUSE
    scorer = ScriptedScorer()
    scorer.gate.clear()
    async with playing(script, scorer=scorer, ahead=AHEAD) as played:
        await played.feed(len(SPEECH) + 7)
        await until(lambda: len(scorer.ahead) == 1)
        await played.feed(len(SPEECH) + 7)
        await until(lambda: len(scorer.ahead) == 2)
        await played.feed(len(PAUSE) - 7)
        scorer.gate.set()
        await played.finish()
    (event,) = finals(played)
    assert scorer.seen == []
    assert event.utterance.end == scorer.ahead[1].end > scorer.ahead[0].end
    assert scorer.given_up == scorer.ahead[:1]


async def test_work_ahead_ends_as_soon_as_speech_goes_on() -> None:
    scorer = ScriptedScorer()
    scorer.gate.clear()
    async with playing(SPEECH + [0.0] * 7 + SPEECH, scorer=scorer, ahead=AHEAD) as played:
        await played.feed(len(SPEECH) + 7)
        await until(lambda: len(scorer.ahead) == 1)
        await played.feed(1)
        await until(lambda: scorer.given_up == scorer.ahead)


async def test_a_scorer_that_does_nothing_ahead_scores_when_it_is_certain() -> None:
    scorer = ScriptedScorer(busy=True)
    async with playing(SPEECH + PAUSE, scorer=scorer, ahead=AHEAD) as played:
        await played.feed(len(SPEECH) + 6)
        await until(lambda: len(scorer.ahead) == 1)
        await played.feed(len(PAUSE) - 6)
        await played.finish()
    assert [utterance.index for utterance in scorer.seen] == [0]
    assert len(finals(played)) == 1


@pytest.mark.parametrize("end", [PAUSE, [0.0] * 7 + SPEECH], ids=["ended", "resumed"])
async def test_nothing_is_scored_ahead_for_a_pause_that_is_over_by_then(end: list[float]) -> None:
    """Audio may come in large pieces, or faster than it is spoken: work ahead would wait until it would have been wanted."""
    async with playing(SPEECH + end, ahead=AHEAD) as played:
        await played.feed(len(SPEECH + end))
        await played.finish()
    assert played.scorer.ahead == []
    assert [utterance.index for utterance in played.scorer.seen] == [0]
    assert len(finals(played)) == 1


@pytest.mark.parametrize("at_its_end", [True, False])
async def test_the_scorer_is_told_that_what_it_scores_ahead_is_certain(at_its_end: bool) -> None:
    """Else it would go on as if that was wanted later."""
    scorer = ScriptedScorer()
    scorer.gate.clear()
    async with playing(SPEECH + [0.0] * 6, scorer=scorer, ahead=AHEAD) as played:
        await played.feed(len(SPEECH) + 6)
        await until(lambda: len(scorer.ahead) == 1)
        assert scorer.accepted == []
        await (played.call.close() if at_its_end else played.call.finalize())
        (certain,) = scorer.accepted
        assert (certain.start, certain.end) == (scorer.ahead[0].start, scorer.ahead[0].end)
        scorer.gate.set()
        await played.finish()
    assert scorer.seen == []
    assert len(finals(played)) == 1


async def test_a_model_that_fails_ahead_is_asked_again() -> None:
    scorer = ScriptedScorer(failing=frozenset({0}))
    async with playing(SPEECH + PAUSE, scorer=scorer, ahead=AHEAD) as played:
        await played.feed(len(SPEECH) + 6)
        await until(lambda: len(scorer.ahead) == 1)
        await played.feed(len(PAUSE) - 6)
        await played.call.close()
        with pytest.raises(UpstreamError, match="out of memory"):
            await played.scoring
    assert [utterance.index for utterance in scorer.seen] == [0]


async def test_a_stream_that_ends_in_a_pause_uses_what_was_scored_ahead() -> None:
    async with playing(SPEECH + [0.0] * 6, ahead=AHEAD) as played:
        await played.feed(len(SPEECH) + 6)
        await until(lambda: bool(played.scorer.ahead))
        await played.finish()
    assert played.scorer.seen == []
    assert len(finals(played)) == 1


async def test_work_ahead_is_given_up_with_its_stream() -> None:
    scorer = ScriptedScorer()
    scorer.gate.clear()
    async with playing(SPEECH + PAUSE, scorer=scorer, ahead=AHEAD) as played:
        await played.feed(len(SPEECH) + 6)
        await until(lambda: bool(scorer.ahead))
        played.scoring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await played.scoring
