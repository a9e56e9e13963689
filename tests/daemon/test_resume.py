"""A client that loses its connection loses nothing else: the same results, each once, over however many connections."""

import asyncio
import json
import random
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from daemon.client import paced, stream
from daemon.config import load_config
from daemon.events import read_events
from daemon.offline import score_recording
from daemon.wire import emotion_message
from model.audio import SAMPLE_RATE_HZ
from model.recording import read_recording
from tests.daemon.conftest import (
    ASSETS,
    CALL,
    Message,
    Served,
    assert_same_results,
    events_of,
    finals,
    of_type,
    serving,
)
from tests.daemon.cutting import Network, network
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

TWO = ASSETS / "two_sentences.flac"
WITHIN_S = 60.0


def json_of(text: str | bytes) -> Message:
    message: Message = json.loads(text)
    return message


def text_of(message: Message) -> str:
    return json.dumps(message)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def offline() -> dict[Path, list[Message]]:
    config = load_config(None, {})
    return {
        clip: finals([emotion_message(event) for event in await score_recording(clip, config)]) for clip in (TWO, CALL)
    }


async def told(line: Network, clip: Path, call: str, speed: float, reconnect_s: float = 20.0) -> list[Message]:
    """Every message of a clip that is streamed through a network."""
    audio = read_recording(clip)
    messages = stream(
        f"ws://127.0.0.1:{line.port}/v1/stream",
        paced(audio, speed),
        reconnect_s=reconnect_s,
        channels=len(audio),
        call_id=call,
    )
    async with asyncio.timeout(WITHIN_S):
        return [message async for message in messages]


async def assert_once(served: Served, call: str, wanted: list[Message]) -> None:
    """Redis has the call's results once each, in one session from its begin to its end."""
    events = await events_of(served.daemon.redis_url, call)
    ids = [event["event_id"] for event in events]
    assert len(set(ids)) == len(ids)
    assert [event["type"] for event in events if event["type"].startswith("call.")] == ["call.started", "call.ended"]
    found = [event for event in events if event["type"] == "emotion"]
    assert sorted(event["text"] for event in found) == sorted(message["text"] for message in wanted)


@pytest.mark.parametrize("seed", range(3))
async def test_cut_at_any_moment_the_results_are_the_same(
    served: Served, offline: dict[Path, list[Message]], seed: int
) -> None:
    chance = random.Random(seed)
    async with network(served.port) as line:
        streaming = asyncio.create_task(told(line, CALL, f"cut-{seed}", speed=8.0))
        while not streaming.done():
            await asyncio.wait({streaming}, timeout=chance.uniform(0.05, 0.8))
            line.cut()
        messages = await streaming
    assert_same_results(finals(messages), offline[CALL])
    numbered = [message["seq"] for message in messages if message["type"] != "session.resumed"]
    assert numbered == list(range(len(numbered)))
    assert len(of_type(messages, "session.created")) == 1
    resumed = of_type(messages, "session.resumed")
    assert len(resumed) >= 3
    assert {message["missed"] for message in resumed} == {0}
    assert messages[-1]["reason"] == "client_closed"
    await assert_once(served, f"cut-{seed}", offline[CALL])


async def test_a_connection_that_hangs_is_replaced(served: Served, offline: dict[Path, list[Message]]) -> None:
    """The server may not know for minutes that its connection is dead: the client's word counts."""
    audio = read_recording(TWO)
    pcm = np.round(audio * 32768.0).astype("<i2").T.tobytes()
    half = len(pcm) // 2 - len(pcm) // 2 % 2
    async with connect(f"{served.url}?resume=true&call_id=hanging") as first, asyncio.timeout(WITHIN_S):
        created = json_of(await first.recv())
        await first.send(pcm[:half])
        async with connect(served.url) as second:
            await second.send(text_of({"type": "resume", "resume": created["resume"], "after": created["seq"]}))
            messages = [json_of(await second.recv())]
            while messages[-1]["type"] != "session.resumed":
                messages.append(json_of(await second.recv()))
            received = 2 * messages[-1]["received"]
            await second.send(pcm[received:])
            await second.send(text_of({"type": "close"}))
            messages += [json_of(text) async for text in second]
    assert_same_results(finals(messages), offline[TWO])


async def test_a_stream_nobody_comes_back_to_is_finished(spool: Path, offline: dict[Path, list[Message]]) -> None:
    async with serving(spool / "window", limits={"resume_window_s": 0.3}) as served, network(served.port) as line:
        streaming = asyncio.create_task(told(line, TWO, "late", speed=0.0))
        await until(lambda: line.connections == 1)
        await asyncio.sleep(1.0)
        line.up = False
        line.cut()
        await asyncio.sleep(1.0)
        line.up = True
        messages = await streaming
        events = await events_of(served.daemon.redis_url, "late")
    assert {event["text"] for event in events if event["type"] == "emotion"} == {m["text"] for m in offline[TWO]}
    del messages


async def test_a_shutdown_finishes_streams_without_a_client(spool: Path, offline: dict[Path, list[Message]]) -> None:
    seen: list[dict[str, str]] = []
    async with serving(spool / "drain") as served:
        async with connect(f"{served.url}?resume=true&call_id=parked") as connection:
            await connection.recv()
            await connection.send(np.round(read_recording(TWO) * 32768.0).astype("<i2").T.tobytes())
            await until(lambda: bool(served.daemon.streams))
            connection.transport.abort()
        reading = asyncio.create_task(events_of(served.daemon.redis_url, "parked"))
        await until(lambda: len(served.daemon.streams.parking) == 1)
        served_stop = asyncio.create_task(served.daemon.streams.drain(20.0))
        seen = await reading
        assert await served_stop == 0
    assert [event["text"] for event in seen if event["type"] == "emotion"] == [m["text"] for m in offline[TWO]]
    assert seen[-1]["reason"] == "going_away"


async def test_who_missed_more_than_is_kept_is_told_and_goes_on(
    spool: Path, offline: dict[Path, list[Message]]
) -> None:
    """What is repeated at once must not look like a reader that is too slow."""
    async with serving(spool / "few", limits={"outbox": 3}) as served, asyncio.timeout(WITHIN_S):
        async with connect(f"{served.url}?resume=true&call_id=few") as first:
            created = json_of(await first.recv())
            await first.send(np.round(read_recording(TWO) * 32768.0).astype("<i2").T.tobytes())
            first.transport.abort()
        await until(lambda: len(served.daemon.streams.parking) == 1)
        async with aclosing(read_events(served.daemon.redis_url, start="0")) as entries:
            scored = 0
            async for _, fields in entries:
                scored += fields["type"] == "emotion"
                if scored == len(offline[TWO]) - 1:  # the last one is still open
                    break
        async with connect(served.url) as second:
            await second.send(text_of({"type": "resume", "resume": created["resume"], "after": created["seq"]}))
            await second.send(text_of({"type": "close"}))
            messages = [json_of(text) async for text in second]
    assert of_type(messages, "error") == []
    (resumed,) = of_type(messages, "session.resumed")
    assert messages.index(resumed) == 2
    assert resumed["missed"] >= 1
    assert messages[-1]["reason"] == "client_closed"


async def test_a_server_that_keeps_no_streams_hears_everything_too(spool: Path) -> None:
    """It settles nothing, so a client that waited for that would stop after two minutes."""
    silence = np.zeros((1, 150 * SAMPLE_RATE_HZ), np.float32)
    async with serving(spool / "none", limits={"resume_window_s": 0}) as served, asyncio.timeout(WITHIN_S):
        messages = [m async for m in stream(served.url, paced(silence, speed=0.0), reconnect_s=5.0)]
    assert messages[0]["resume"] is None
    assert messages[-1]["totals"]["received_ms"] == 150_000


async def test_a_stream_that_waits_for_its_client_has_its_place(
    spool: Path, offline: dict[Path, list[Message]]
) -> None:
    """Nobody else gets it; and its client comes back, however full the server is."""
    audio = read_recording(TWO)
    async with serving(spool / "place", limits={"max_streams": 1}) as served, network(served.port) as line:
        messages = stream(f"ws://127.0.0.1:{line.port}/v1/stream", paced(audio, 4.0), reconnect_s=20.0)
        async with asyncio.timeout(WITHIN_S):
            found = [await anext(messages)]
            line.up = False
            line.cut()
            await until(lambda: len(served.daemon.streams.parking) == 1)
            async with connect(f"{served.url}?channels=1") as another:
                error = json_of(await another.recv())
                await another.wait_closed()
            assert (another.close_code, error["code"]) == (1013, "overloaded")
            assert "1 streams are open, the limit, 1 of them waiting for their clients: come back" in error["message"]
            assert "\nmedusa_streams 1.0" in (await served.get("/metrics"))[1]
            line.up = True
            found += [message async for message in messages]
            assert len(of_type(found, "session.resumed")) == 1
            assert_same_results(finals(found), offline[TWO])
            await until(lambda: len(served.daemon.streams.parking) == 1)  # the end, for a client that missed it
            async with connect(f"{served.url}?channels=1") as another:
                assert json_of(await another.recv())["type"] == "session.created", "what has ended takes no place"


async def test_a_full_server_takes_back_a_client_whose_connection_hangs(spool: Path) -> None:
    async with serving(spool / "hangs", limits={"max_streams": 1}) as served, asyncio.timeout(WITHIN_S):
        async with connect(f"{served.url}?resume=true") as first, connect(served.url) as second:
            created = json_of(await first.recv())
            await second.send(text_of({"type": "resume", "resume": created["resume"], "after": created["seq"]}))
            assert json_of(await second.recv())["type"] == "session.resumed"
            await second.send(text_of({"type": "close"}))
            assert json_of(await second.recv())["type"] == "session.closed"


async def test_a_server_without_room_is_given_up_in_time(spool: Path) -> None:
    """Of connections it lets twice as many in as streams; those that say nothing have their places too."""
    audio = read_recording(TWO)
    async with serving(spool / "full", limits={"max_streams": 1}) as served, network(served.port) as line:
        url = f"ws://127.0.0.1:{line.port}/v1/stream"
        messages = stream(url, paced(audio), reconnect_s=1.0)
        await anext(messages)
        async with asyncio.timeout(WITHIN_S):
            line.up = False
            line.cut()
            await until(lambda: len(served.daemon.streams.parking) == 1)
            async with connect(served.url), connect(served.url):
                line.up = True
                with pytest.raises(ConnectionError, match="for 1 s not to be had again"):
                    async for _ in messages:
                        pass


@pytest.mark.parametrize(
    "first",
    [
        {"type": "resume", "resume": "guessed"},
        {"type": "resume", "resume": "guessed", "after": -2},
        {"type": "resume"},
        {"type": "resume", "resume": 7},
        {"type": "resume", "resume": "x" * 129},
        {"type": "resume", "resume": "guessed", "sample_rate": 8000},
    ],
)
async def test_what_cannot_be_resumed_is_an_error(served: Served, first: dict[str, Any]) -> None:
    async with connect(served.url) as connection, asyncio.timeout(10.0):
        await connection.send(text_of(first))
        error = json_of(await connection.recv())
        with pytest.raises(ConnectionClosed):
            await connection.recv()
    good = first == {"type": "resume", "resume": "guessed"}
    assert (error["type"], error["code"]) == ("error", "unknown_resume" if good else "bad_request")
    assert connection.close_code == (1008 if good else 1007)


async def test_a_token_is_given_to_those_who_ask(served: Served) -> None:
    async with connect(f"{served.url}?encoding=linear16") as plain, connect(f"{served.url}?resume=true") as resumable:
        assert json_of(await plain.recv())["resume"] is None
        created = json_of(await resumable.recv())
    assert len(created["resume"]) >= 32
    assert created["resume_window_ms"] == 30_000


async def test_audio_is_settled_up_to_what_may_still_be_needed(served: Served) -> None:
    """Not up to the end: an utterance that is open is needed as a whole."""
    audio = read_recording(TWO)
    messages = stream(served.url, paced(audio, 4.0), reconnect_s=5.0, call_id="settled")
    found = [message async for message in messages]
    settled = [message["settled_ms"] for message in of_type(found, "audio.settled")]
    assert settled == sorted(settled)
    assert settled
    for position, message in enumerate(found):
        if message["type"] == "audio.settled":
            later = [m["start_ms"] for m in found[position:] if m["type"] == "emotion"]
            assert all(start >= message["settled_ms"] for start in later)
