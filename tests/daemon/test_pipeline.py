"""One call from audio to events, with scripted speech and a scripted engine."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from daemon.detection import Detection
from daemon.errors import UpstreamError
from daemon.messages import CallEvent, EmotionEvent, Totals
from daemon.pipeline import Call, Services
from daemon.session import Session
from daemon.sinks.memory import MemorySink
from model.audio import PRE_PAD, VAD_WINDOW, Samples
from model.segmenter import Endpointing
from tests.daemon.playing import INTERIM, PAUSE, SPEECH, playing
from tests.factories import make_info
from tests.fakes import ScriptedDetector, ScriptedScorer
from tests.waiting import until

WAITING_FINALS = 8
"""Finals that may wait behind the one that is being scored."""


async def test_events_and_messages_tell_the_call_in_order() -> None:
    async with playing((SPEECH + PAUSE) * 3) as played:
        played.call.started()
        await played.feed(3 * len(SPEECH + PAUSE))
        await played.finish()
        played.call.ended("client_closed")
    ids = [event.event_id for event in played.sink.events]
    assert ids == ["session-1:call.started", *[f"session-1:0:{n}:final" for n in range(3)], "session-1:call.ended"]
    emotions = [message for message in played.told if message["type"] == "emotion"]
    assert [message["utterance"] for message in emotions] == [0, 1, 2]
    assert [message["event_id"] for message in emotions] == ids[1:-1]


async def test_the_end_carries_the_totals_and_the_reason() -> None:
    async with playing(SPEECH + PAUSE + SPEECH) as played:
        await played.feed(40)
        await played.call.feed([np.zeros(5, np.float32)])
        await played.finish()
        played.call.ended("model_failed", failed=True)
    expected = Totals(received_samples=40 * VAD_WINDOW + 5, utterances=2, finals=2)
    assert played.call.totals == expected
    end = played.sink.events[-1]
    assert isinstance(end, CallEvent)
    assert (end.type, end.reason, end.totals) == ("call.failed", "model_failed", expected)


async def test_a_start_of_speech_is_told_before_its_first_result_and_with_its_role() -> None:
    async with playing([], PAUSE + SPEECH + PAUSE) as played:
        await played.feed(60)
        await played.finish()
    start, result = played.told
    assert start == {"type": "speech.started", "channel": 1, "role": "agent", "start_ms": 20 * 32.0 - 200.0}
    assert (result["type"], result["role"], result["start_ms"]) == ("emotion", "agent", start["start_ms"])


async def test_a_waiting_interim_is_replaced_by_a_newer_one_and_at_last_by_the_final() -> None:
    scorer = ScriptedScorer()
    scorer.gate.clear()
    async with playing([0.9] * 100 + PAUSE, scorer=scorer, interim=INTERIM) as played:
        await played.feed(30)
        await until(lambda: played.asked == [(0, 1)])
        await played.feed(40)
        waiting = 70 * VAD_WINDOW // INTERIM
        assert played.call.totals.dropped_interims == waiting - 2
        scorer.gate.set()
        await until(lambda: played.published == [(0, 0, 1), (0, 0, waiting)])
        await played.feed(50)
        await played.finish()
    assert played.published[-1] == (0, 0, 0)
    cut = 100 * VAD_WINDOW // INTERIM
    assert played.call.totals.interims + played.call.totals.dropped_interims == cut
    assert played.call.totals.finals == 1


@pytest.mark.parametrize("channel", [0, 1])
async def test_an_interim_that_is_being_scored_gives_way_to_a_final_of_its_stream(channel: int) -> None:
    scorer = ScriptedScorer()
    scorer.gate.clear()
    speech = [0.9] * 16 + PAUSE
    scripts = (speech, []) if channel == 0 else ([0.9] * 200, speech)
    async with playing(*scripts, scorer=scorer, interim=INTERIM) as played:
        await played.feed(16)
        await until(lambda: played.asked == [(0, 1)])
        await played.feed(len(PAUSE))
        await until(lambda: (0, 0) in played.asked)
        assert played.call.totals.dropped_interims >= 1
        scorer.gate.set()
        await played.finish()
    assert (channel, 0, 0) in played.published
    assert (0, 0, 1) not in played.published


async def test_an_interim_replaces_only_those_of_its_own_channel() -> None:
    scorer = ScriptedScorer()
    scorer.gate.clear()
    async with playing([0.9] * 70, [0.9] * 70, scorer=scorer, interim=INTERIM) as played:
        await played.feed(20)
        await until(lambda: bool(played.scorer.seen))
        await played.feed(50)
        scorer.gate.set()
        await until(lambda: len(played.published) == 3)
    latest = 70 * VAD_WINDOW // INTERIM
    assert played.published == [(0, 0, 1), (0, 0, latest), (1, 0, latest)]


async def test_an_engine_without_room_costs_interims_and_no_final() -> None:
    async with playing(([0.9] * 60 + PAUSE) * 3, scorer=ScriptedScorer(full=True), interim=INTERIM) as played:
        for _ in range(24):
            await played.feed(10)
        await played.finish()
    assert played.published == [(0, 0, 0), (0, 1, 0), (0, 2, 0)]
    assert played.call.totals.interims == 0
    speech = 60 * VAD_WINDOW
    cut = speech // INTERIM + 2 * ((speech + PRE_PAD) // INTERIM)  # no pad reaches before the stream
    assert played.call.totals.dropped_interims == cut


async def test_audio_that_waits_for_a_slow_engine_is_held_back_and_no_final_is_lost() -> None:
    count = WAITING_FINALS + 4
    scorer = ScriptedScorer()
    scorer.gate.clear()
    async with playing((SPEECH + PAUSE) * count, scorer=scorer) as played:
        feeding = asyncio.create_task(played.feed(count * len(SPEECH + PAUSE)))
        await until(lambda: len(played.call._waiting) == WAITING_FINALS)
        assert len(scorer.accepted) == played.call.totals.utterances == count, "those without room included"
        done, _ = await asyncio.wait({feeding}, timeout=0)
        assert not done
        assert played.published == []
        scorer.gate.set()
        await feeding
        await played.finish()
    assert played.published == [(0, index, 0) for index in range(count)]


async def test_speech_that_is_still_open_at_the_close_is_published() -> None:
    async with playing(SPEECH) as played:
        await played.feed(len(SPEECH))
        assert played.scorer.seen == []
        await played.finish()
    assert played.published == [(0, 0, 0)]
    assert len(played.scorer.seen[0].audio) == len(SPEECH) * VAD_WINDOW


async def test_the_last_partly_filled_window_counts() -> None:
    async with playing([0.9] * 3) as played:
        await played.feed(2)
        await played.call.feed([np.zeros(5, np.float32)])
        await played.finish()
    assert played.published == [(0, 0, 0)], "three windows are the least speech"


async def test_what_waits_at_the_close_is_published() -> None:
    scorer = ScriptedScorer()
    scorer.gate.clear()
    async with playing((SPEECH + PAUSE) * 4, scorer=scorer) as played:
        await played.feed(4 * len(SPEECH + PAUSE))
        await played.call.close()
        assert played.published == []
        scorer.gate.set()
        await played.scoring
    assert played.published == [(0, index, 0) for index in range(4)]


async def test_finalize_ends_the_utterance_and_the_call_goes_on() -> None:
    async with playing(SPEECH * 2) as played:
        await played.feed(len(SPEECH))
        await played.call.finalize()
        await until(lambda: played.published == [(0, 0, 0)])
        await played.feed(len(SPEECH))
        await played.finish()
    assert played.published == [(0, 0, 0), (0, 1, 0)]


async def test_a_call_without_speech_publishes_nothing_and_ends() -> None:
    async with playing([]) as played:
        await played.feed(100)
        await played.finish()
    assert (played.sink.events, played.told) == ([], [])


async def test_a_failed_final_ends_the_call_after_what_came_before_it() -> None:
    async with playing((SPEECH + PAUSE) * 4, scorer=ScriptedScorer(failing=frozenset({2}))) as played:
        await played.feed(4 * len(SPEECH + PAUSE))
        with pytest.raises(UpstreamError, match="out of memory"):
            await played.finish()
    assert played.published == [(0, 0, 0), (0, 1, 0)]
    assert played.told[-1] == {
        "type": "error",
        "code": "model_failed",
        "message": "utterance 2: the asr model failed: out of memory",
    }
    assert played.call.totals.finals == 2


async def test_a_failed_interim_costs_nothing_but_itself() -> None:
    async with playing([0.9] * 60, scorer=ScriptedScorer(failing=frozenset({0})), interim=INTERIM) as played:
        await played.feed(30)
        await until(lambda: played.call.totals.dropped_interims == 1)
        await played.feed(5)
        assert not played.scoring.done()
    assert [message["type"] for message in played.told] == ["speech.started"]
    assert played.published == []


async def test_audio_behind_a_failure_is_never_waited_for() -> None:
    """Nothing makes room any more: a `feed` that waited for it would hold the connection for ever."""
    count = WAITING_FINALS + 4
    scorer = ScriptedScorer(failing=frozenset({0}))
    scorer.gate.clear()
    async with playing((SPEECH + PAUSE) * count, scorer=scorer) as played:
        feeding = asyncio.create_task(played.feed(count * len(SPEECH + PAUSE)))
        await until(lambda: len(played.call._waiting) == WAITING_FINALS)
        scorer.gate.set()
        await feeding
        await played.call.close()
        with pytest.raises(UpstreamError):
            await played.scoring
    assert played.published == []


async def test_a_cancelled_call_stops_scoring_and_lets_go_of_who_feeds_it() -> None:
    count = WAITING_FINALS + 4
    scorer = ScriptedScorer()
    scorer.gate.clear()
    async with playing((SPEECH + PAUSE) * count, scorer=scorer) as played:
        feeding = asyncio.create_task(played.feed(count * len(SPEECH + PAUSE)))
        await until(lambda: len(played.call._waiting) == WAITING_FINALS)
        played.scoring.cancel()
        await feeding
    assert played.asked == [(0, 0)]


async def test_a_chunk_that_lacks_a_channel_is_refused() -> None:
    one: list[Samples] = [np.zeros(VAD_WINDOW, np.float32)]
    async with playing([], []) as played:
        with pytest.raises(ValueError, match="has 2 channels, got 1"):
            await played.call.feed(one)


async def test_a_feed_that_was_cancelled_ends_before_the_close_begins() -> None:
    """Its thread cannot be stopped, and a session is for one at a time: what it found is published too."""
    entered, go_on = threading.Event(), threading.Event()
    inside: list[int] = []
    scripted = ScriptedDetector(SPEECH + PAUSE + SPEECH)

    def detect(windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        inside.append(len(windows))
        assert len(inside) == 1, "two threads are in one session"
        entered.set()
        go_on.wait(10)
        inside.pop()
        return scripted(windows)

    sink = MemorySink()
    with ThreadPoolExecutor(2) as compute:
        session = Session([detect], Endpointing())
        call = Call(
            make_info(roles=("customer",)),
            session,
            Services(ScriptedScorer(), sink, Detection(compute)),
            lambda _: None,
        )
        scoring = asyncio.create_task(call.run())
        feeding = asyncio.create_task(call.feed([np.zeros(40 * VAD_WINDOW + 5, np.float32)]))
        await asyncio.to_thread(entered.wait, 10)
        feeding.cancel()
        await asyncio.wait({feeding})
        closing = asyncio.create_task(call.close())
        await asyncio.wait({closing}, timeout=0.1)
        assert not closing.done()
        go_on.set()
        await closing
        await scoring
    found = [event.utterance.index for event in sink.events if isinstance(event, EmotionEvent)]
    assert found == [0, 1]
    assert call.totals == Totals(received_samples=40 * VAD_WINDOW + 5, utterances=2, finals=2)
