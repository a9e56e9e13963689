"""Whatever a client does wrong, it is told so, its accepted audio is published, and a stream beside it is unharmed."""

import asyncio
import json
import random
import socket
import tracemalloc
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from daemon.detection import Detection
from daemon.messages import CallInfo, Scores, Utterance
from daemon.pipeline import Call, Services
from daemon.session import Previews, Session
from daemon.sinks.memory import MemorySink
from daemon.wire import redis_fields
from model.adaptation import NO_HISTORY, History
from model.audio import MAX_UTTERANCE, SAMPLE_RATE_HZ, VAD_WINDOW
from model.segmenter import Endpointing
from tests.daemon.conftest import ASSETS, Message, Served, assert_same_results, finals, linear16_of, pieces, serving
from tests.factories import make_info, make_scores
from tests.fakes import ScriptedDetector
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

TWO = ASSETS / "two_sentences.flac"
HELLO = ASSETS / "hello_3s.flac"
MOST_STREAMS = 4
MOST_BYTES = 65_536
OUTBOX = 16


@pytest.fixture(scope="module")
def daemon_flags() -> dict[str, Any]:
    return {"limits": {"max_streams": MOST_STREAMS, "max_message_bytes": MOST_BYTES, "outbox": OUTBOX}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alone(served: Served) -> list[Message]:
    """What the well-behaved stream gives when nobody else is there."""
    return finals(await served.stream(pieces(linear16_of(TWO)), interim_ms=0))


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def neighbour(served: Served, alone: list[Message]) -> AsyncIterator[None]:
    """A well-behaved stream is open during every test, in the middle of a sentence, and goes on behind it."""
    chunks = pieces(linear16_of(TWO))
    half, go_on = asyncio.Event(), asyncio.Event()

    async def paused() -> AsyncIterator[bytes]:
        for index, chunk in enumerate(chunks):
            if index == len(chunks) // 3:
                half.set()
                await go_on.wait()
            yield chunk

    task = asyncio.create_task(served.stream(paused(), interim_ms=0))
    await half.wait()
    yield
    go_on.set()
    assert_same_results(finals(await task), alone)


def opened(served: Served, **parameters: Any) -> connect:
    """A connection of our own, so that we can do with it what our client would not."""
    query = urlencode({"interim_ms": 0} | parameters)
    return connect(f"{served.url}?{query}", max_size=None)


async def rest_of(connection: ClientConnection) -> tuple[list[Message], int | None]:
    """All messages up to the end, and the close code."""
    messages = []
    async with asyncio.timeout(30):
        try:
            async for text in connection:
                messages.append(json.loads(text))
        except ConnectionClosed:
            pass  # the code says what it was
        await connection.wait_closed()
    return messages, connection.close_code


async def read_until(connection: ClientConnection, kind: str) -> Message:
    async with asyncio.timeout(30):
        while (message := json.loads(await connection.recv()))["type"] != kind:
            pass
    found: Message = message
    return found


@pytest.mark.parametrize(
    ("parameters", "code", "close_code", "says"),
    [
        ({"encoding": "mp3"}, "bad_encoding", 1003, "'mp3' is not known; use one of linear16"),
        ({"sample_rate": 1}, "bad_sample_rate", 1003, "sample_rate 1 lies outside 4000"),
        ({"sample_rate": "fast"}, "bad_request", 1007, "sample_rate"),
        ({"channels": 3, "roles": "a,b,c"}, "bad_channels", 1003, "channels 3 is not 1 or 2"),
        ({"channels": 2, "roles": "agent"}, "bad_roles", 1007, "customer,agent"),
        ({"channels": 2, "roles": "agent,agent"}, "bad_roles", 1007, "different channels"),
        ({"call_id": "../../etc"}, "bad_request", 1007, "call_id"),
        ({"interim_ms": -1}, "bad_request", 1007, "interim_ms"),
        ({"metadata": "{"}, "bad_json", 1007, "no JSON"),
        ({"sampel_rate": 8000}, "bad_request", 1007, "sampel_rate"),
    ],
)
async def test_a_request_that_cannot_be_served(
    served: Served, parameters: dict[str, Any], code: str, close_code: int, says: str
) -> None:
    async with opened(served, **parameters) as connection:
        messages, closed = await rest_of(connection)
    assert closed == close_code
    (error,) = messages
    assert (error["type"], error["code"], error["seq"]) == ("error", code, 0)
    assert says in error["message"]


NAN = np.array([0.0, np.nan, 0.0], "<f4").tobytes()
BAD_MESSAGES: dict[str, tuple[dict[str, Any], bytes | str, str, str]] = {
    "an odd byte count": ({}, b"\0" * 1281, "bad_frame", "1281 bytes is no whole number of 2-byte frames"),
    "half a stereo frame": ({"channels": 2}, b"\0" * 1282, "bad_frame", "4-byte frames (linear16, 2 channels)"),
    "NaN": ({"encoding": "float32"}, NAN, "not_finite", "NaN or infinity"),
    "infinity": ({"encoding": "float32"}, np.float32(np.inf).tobytes(), "not_finite", "NaN or infinity"),
    "garbage JSON": ({}, '{"type": "finali', "bad_json", "no JSON"),
    "a JSON list": ({}, "[1, 2]", "bad_json", "holds a list; it must be an object"),
    "text where audio belongs": ({}, "UklGRiQAAABXQVZF", "bad_json", "no JSON"),
    "an unknown type": ({}, '{"type": "stop"}', "bad_type", "keep_alive, finalize and close"),
    "no type": ({}, "{}", "bad_type", "keep_alive, finalize and close"),
}


@pytest.mark.parametrize("case", BAD_MESSAGES)
async def test_a_bad_message_ends_its_stream_in_order(served: Served, case: str) -> None:
    """What was said before it is still scored, sent and published; then come the error and the totals."""
    parameters, bad, code, says = BAD_MESSAGES[case]
    call = f"bad-{list(BAD_MESSAGES).index(case)}"
    pcm = np.frombuffer(linear16_of(HELLO), "<i2")
    pcm = np.repeat(pcm, parameters.get("channels", 1))
    audio = (pcm / np.float32(32768)).astype("<f4").tobytes() if "encoding" in parameters else pcm.tobytes()
    async with opened(served, call_id=call, **parameters) as connection:
        for chunk in pieces(audio, 32_000):
            await connection.send(chunk)
        await connection.send(bad)
        messages, closed = await rest_of(connection)
    assert closed == 1007
    *_, error, last = messages
    assert (error["type"], error["code"]) == ("error", code)
    assert says in error["message"]
    assert (last["type"], last["reason"]) == ("session.closed", code)
    assert [message["seq"] for message in messages] == list(range(len(messages)))
    spoken = finals(messages)
    assert len(spoken) == last["totals"]["finals"] == parameters.get("channels", 1)
    *_, stored, ended = await served.events(call)
    assert stored["event_id"] in {message["event_id"] for message in spoken}
    assert (ended["type"], ended["reason"]) == ("call.ended", code)


async def test_audio_before_the_parameters(served: Served) -> None:
    async with connect(served.url) as connection:
        await connection.send(b"\0" * 1280)
        messages, closed = await rest_of(connection)
    assert closed == 1007
    assert [message["code"] for message in messages] == ["bad_start"]


async def test_any_text_is_answered(served: Served) -> None:
    """Never a crash: an error and 1007, every time."""
    chance = random.Random(11)
    alphabet = '{}[]":,\\ntyeu0169.-+\u0000\ud7ff\U0001f600 '
    for _ in range(60):
        text = "".join(chance.choices(alphabet, k=chance.randrange(0, 40)))
        async with connect(served.url) as connection:
            await connection.send(text)
            messages, closed = await rest_of(connection)
        assert closed == 1007, text
        assert messages[0]["code"] in ("bad_json", "bad_start")
    assert (await served.get("/health"))[0] == 200


@pytest.mark.parametrize("size", [MOST_BYTES + 1, MOST_BYTES + 2, 4 * MOST_BYTES])
async def test_a_message_too_big(served: Served, size: int) -> None:
    """1009, whether it is us or the WebSocket layer that refuses it; what came before is published."""
    call = f"big-{size}"
    async with opened(served, call_id=call) as connection:
        for chunk in pieces(linear16_of(HELLO), 32_000):
            await connection.send(chunk)
        await read_until(connection, "emotion")
        await connection.send(b"\0" * size)
        messages, closed = await rest_of(connection)
        reason = connection.close_reason or ""
    assert closed == 1009
    said = [message["message"] for message in messages if message["type"] == "error"] + [reason]
    assert any(str(size) in text for text in said)
    events = await served.events(call)
    assert [fields["type"] for fields in events] == ["call.started", "emotion", "call.ended"]
    assert events[-1]["reason"] == "too_big"


async def test_a_message_at_the_limit_is_taken(served: Served) -> None:
    messages = await served.stream([b"\0" * MOST_BYTES])
    assert messages[-1]["totals"]["received_ms"] == MOST_BYTES / 32


async def test_silence_is_no_mistake(served: Served) -> None:
    for audio in (b"\0" * 5 * 32_000, linear16_of(ASSETS / "silence_noise.flac")):
        messages = await served.stream(pieces(audio))
        assert [message["type"] for message in messages] == ["session.created", "session.closed"]
        assert messages[-1]["totals"]["received_ms"] == 5000
        assert messages[-1]["totals"]["utterances"] == 0


async def test_an_empty_stream_is_no_mistake(served: Served) -> None:
    for chunks in ([], [b""], [b"", b""]):
        async with opened(served, call_id="empty", sample_rate=8000) as connection:
            for chunk in chunks:
                await connection.send(chunk)
            await connection.send('{"type": "close"}')
            messages, closed = await rest_of(connection)
        assert closed == 1000
        assert [message["type"] for message in messages] == ["session.created", "session.closed"]
        assert set(messages[-1]["totals"].values()) == {0}


async def test_a_client_that_vanishes(served: Served) -> None:
    """In the middle of a sentence, without a goodbye: what it had said is scored and published."""
    async with opened(served, call_id="gone", interim_ms=500) as connection:
        await connection.send(linear16_of(TWO)[: 2 * 32_000])
        heard = await read_until(connection, "speech.started")
        connection.transport.abort()
    events = await served.events("gone")
    assert [fields["type"] for fields in events if fields["type"] != "emotion.interim"] == [
        "call.started",
        "emotion",
        "call.ended",
    ]
    final, ended = events[-2:]
    assert float(final["start_ms"]) == heard["start_ms"]
    assert 1500 < float(final["end_ms"]) <= 2000 + 1000 * VAD_WINDOW / SAMPLE_RATE_HZ
    assert final["text"]
    assert (ended["reason"], ended["total_finals"]) == ("client_closed", "1")
    assert float(ended["total_received_ms"]) == 2000


def deaf_socket(port: int) -> socket.socket:
    """A connected socket that takes next to nothing while nobody reads it."""
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    deaf.connect(("127.0.0.1", port))
    deaf.setblocking(False)
    return deaf


async def fall_deaf(connection: ClientConnection) -> None:
    """Reads no more, and fills every buffer between the server and us with answers to pings."""
    await read_until(connection, "session.created")
    connection.transport.pause_reading()
    for number in range(4000):
        await connection.ping(b"%0125d" % number)


async def test_a_client_that_never_reads(served: Served) -> None:
    """It may not hold memory: after `outbox` messages its stream ends, and its results are in Redis."""
    url = f"{served.url}?call_id=deaf&interim_ms=0"
    async with connect(url, sock=deaf_socket(served.port), ping_interval=None, close_timeout=0.1) as connection:
        await fall_deaf(connection)
        refused = asyncio.create_task(_send_for_ever(connection, linear16_of(TWO)))
        events = await served.events("deaf")
        refused.cancel()
        await asyncio.wait({refused})
        connection.transport.abort()
    stored = [fields for fields in events if fields["type"] == "emotion"]
    ended = events[-1]
    assert (ended["type"], ended["reason"]) == ("call.ended", "slow_reader")
    assert len(stored) == int(ended["total_utterances"]) == int(ended["total_finals"]) > OUTBOX // 4


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no such limit")
async def test_a_connection_that_nobody_reads_does_not_stay(served: Served, tmp_path: Path) -> None:
    """What we wrote can never be delivered: the socket is given up after the idle time."""
    async with serving(tmp_path, limits={"idle_timeout_s": 1.0}) as other:
        url = f"{other.url}?interim_ms=0"
        async with connect(url, sock=deaf_socket(other.port), ping_interval=None, close_timeout=0.1) as connection:
            await fall_deaf(connection)
            assert connections_to(other.port) == 1
            await until(lambda: connections_to(other.port) == 0, within_s=30)
            connection.transport.abort()


def connections_to(port: int) -> int:
    """Connections that the kernel holds for a server here (state 01 is established)."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(line[1].split(":")[1], 16) == port and line[3] == "01" for line in lines)


async def _send_for_ever(connection: ClientConnection, audio: bytes) -> None:
    while True:
        for chunk in pieces(audio, 32_000):
            await connection.send(chunk)


async def test_too_many_streams(served: Served) -> None:
    """One more than allowed is sent away, told to come back, and may do so once somebody left."""
    held = [await opened(served) for _ in range(MOST_STREAMS - 1)]  # the neighbour is one as well
    try:
        for connection in held:
            await read_until(connection, "session.created")
        async with opened(served) as connection:
            messages, closed = await rest_of(connection)
        assert closed == 1013
        (error,) = messages
        assert (error["type"], error["code"]) == ("error", "overloaded")
        assert f"{MOST_STREAMS} streams are open" in error["message"]
        await held.pop().close()
        async with asyncio.timeout(10):
            while await _is_refused(served):
                pass  # the stream that was closed is being finished
    finally:
        for connection in held:
            await connection.close()


async def _is_refused(served: Served) -> bool:
    async with opened(served) as connection:
        return bool(json.loads(await connection.recv())["type"] == "error")


async def test_a_client_that_says_nothing(served: Served, tmp_path: Path) -> None:
    """It is closed after the idle time, and told what would have kept it open."""
    async with serving(tmp_path, limits={"idle_timeout_s": 0.5}) as other:
        async with opened(other) as connection:
            await read_until(connection, "session.created")
            messages, closed = await rest_of(connection)
    assert closed == 1008
    assert [message["type"] for message in messages] == ["error", "session.closed"]
    assert "no message for 0.5 s: send audio or keep_alive" in messages[0]["message"]


class LengthScorer:
    """Scores without a model, and keeps where utterances lie but none of their audio."""

    def __init__(self) -> None:
        self.spans: list[tuple[int, int]] = []

    def accept(self, info: CallInfo, utterance: Utterance) -> None:
        pass

    async def score(
        self, info: CallInfo, utterance: Utterance, history: History = NO_HISTORY, *, ahead_s: float = 0.0
    ) -> Scores:
        assert len(utterance.audio) == utterance.end - utterance.start
        if utterance.final:
            self.spans.append((utterance.start, utterance.end))
        await asyncio.sleep(0)
        return make_scores()


async def test_a_monologue_of_forty_minutes() -> None:
    """It is cut again and again, without a hole; memory holds a few utterances of it, whatever its length."""
    windows = 40 * 60 * SAMPLE_RATE_HZ // VAD_WINDOW
    scorer, sink = LengthScorer(), MemorySink()
    published: list[dict[str, str]] = []
    session = Session([ScriptedDetector([0.9] * windows)], Endpointing(), Previews(interim=SAMPLE_RATE_HZ))
    second = np.zeros(SAMPLE_RATE_HZ, np.float32)
    with ThreadPoolExecutor(1) as compute:
        call = Call(
            make_info(roles=("customer",)), session, Services(scorer, sink, Detection(compute)), lambda message: None
        )
        running = asyncio.create_task(call.run())
        peaks = []
        for _ in range(4):
            tracemalloc.start()
            for _ in range(10 * 60):
                await call.feed([second])
                published += [redis_fields(event) for event in sink.events]  # as Redis has them: without audio
                sink.events.clear()
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        await call.close()
        await running
    utterance_bytes = MAX_UTTERANCE * second.itemsize
    assert max(peaks) < 12 * utterance_bytes
    lengths = [end - start for start, end in scorer.spans]
    assert max(lengths) <= MAX_UTTERANCE
    assert min(lengths[:-1]) >= MAX_UTTERANCE - 4 * SAMPLE_RATE_HZ
    assert [start for start, _ in scorer.spans[1:]] == [end for _, end in scorer.spans[:-1]]
    assert (scorer.spans[0][0], scorer.spans[-1][1]) == (0, windows * VAD_WINDOW)
    published += [redis_fields(event) for event in sink.events]
    indexes = [int(fields["utterance"]) for fields in published if fields["type"] == "emotion"]
    assert indexes == list(range(len(scorer.spans)))
    assert call.totals.utterances == call.totals.finals == len(scorer.spans) >= 120
    assert call.totals.received_samples == windows * VAD_WINDOW
