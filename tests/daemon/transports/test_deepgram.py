"""Deepgram's live protocol, spoken by Deepgram's own SDK."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from deepgram import AsyncDeepgramClient, DeepgramClient
from deepgram.core.api_error import ApiError
from deepgram.environment import DeepgramClientEnvironment
from streamdouble import g711
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from daemon import wire
from daemon.errors import PeerError
from daemon.transports.deepgram import DeepgramDialect
from daemon.transports.dialect import Audio, Close, Finalize, Frame, Start
from model.audio import MAX_UTTERANCE
from model.segmenter import Endpointing
from tests.daemon.conftest import ASSETS, Served, linear16_of, pieces
from tests.daemon.transports.conftest import (
    assert_same_events,
    carried_out,
    handshake,
    offline,
    replies,
    survives_mutations,
    telephone,
)
from tests.factories import make_emotion_event, make_info
from tests.waiting import until

pytestmark = pytest.mark.filterwarnings("ignore:.*websockets.*:DeprecationWarning")  # the SDK uses its old client
in_module_loop = pytest.mark.asyncio(loop_scope="module")

TWO = ASSETS / "two_sentences.flac"
RAW = "encoding=linear16&sample_rate=16000"
RULES = Endpointing()
WITHIN_S = 60.0
MS = bytes(32)
"""One millisecond of silence."""


def dialect(query: str = RAW) -> DeepgramDialect:
    return DeepgramDialect(handshake(f"/v1/listen?{query}"), RULES)


def opened(query: str = RAW, roles: tuple[str, ...] = ("customer",)) -> DeepgramDialect:
    """A dialect whose stream has begun."""
    one = dialect(query)
    assert one.refusal() is None
    carried_out(one.opening())
    assert said(one, wire.session_created(make_info(roles=roles), ("angry",), ())) == []
    return one


def said(one: DeepgramDialect, message: wire.Message) -> list[dict[str, Any]]:
    return [json.loads(frame) for frame in one.render(message)]


def emotion(start_ms: float, end_ms: float, endpoint_ms: float = 380.0, **changed: Any) -> wire.Message:
    message = wire.emotion_message(make_emotion_event())
    message |= {"start_ms": start_ms, "end_ms": end_ms} | changed
    message["latency_ms"]["endpoint"] = endpoint_ms
    return message


def start_of(query: str) -> Start:
    (command,) = carried_out(dialect(query).opening())
    assert isinstance(command, Start)
    return command


def test_what_the_query_asks_for() -> None:
    start = start_of(
        f"{RAW}&channels=2&multichannel=true&language=en-US&tag=night&model=nova-3&smart_format=true&roles=agent,customer"
    )
    assert (start.request.channels, start.request.language) == (2, "en")
    assert start.request.role_names() == ("agent", "customer")
    assert (start.request.interim_ms, start.request.metadata) == (0, {"tag": "night"})
    assert start.endpointing == RULES
    assert start_of(f"{RAW}&interim_results=true&call_id=c1").request.interim_ms is None
    assert start_of(f"{RAW}&call_id=c1").request.call_id == "c1"
    assert start_of("encoding=mulaw").request.sample_rate == 8000
    assert start_of(f"{RAW}&language=multi").request.language is None


def test_endpointing() -> None:
    for value, silence_ms in [("300", 300), ("10", 120), ("true", 500), ("false", 500)]:
        start = start_of(f"{RAW}&endpointing={value}")
        assert start.endpointing is not None
        assert start.endpointing.endpoint_silence_ms == silence_ms
        assert start.endpointing.onset == RULES.onset


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", "send raw audio as one of linear16, linear32, mulaw, alaw"),
        ("encoding=opus&sample_rate=48000", "encoding 'opus' is not taken"),
        ("encoding=linear16", "sample_rate is ''; it is a whole number"),
        ("encoding=linear16&sample_rate=1", "sample_rate 1 lies outside 4000"),
        (f"{RAW}&channels=3", "channels is '3'; it is a whole number from 1 to 2"),
        (f"{RAW}&multichannel=perhaps", "multichannel is 'perhaps'; it is true or false"),
        (f"{RAW}&endpointing=soon", "endpointing is 'soon'"),
        (f"{RAW}&utterance_end_ms=-5", "utterance_end_ms is '-5'"),
        (f"{RAW}&language=English", "language"),
        (f"{RAW}&call_id=../..", "call_id"),
    ],
)
def test_what_cannot_be_is_refused_before_it_begins(query: str, says: str) -> None:
    refusal = dialect(query).refusal()
    assert refusal is not None
    assert refusal.status == 400
    assert says in refusal.message


def test_audio_may_be_cut_anywhere() -> None:
    one = opened(f"{RAW}&channels=2&multichannel=true")
    audio = np.arange(8000, dtype="<i2").tobytes()
    heard: list[list[float]] = [[], []]
    for size in (1, 3, 2, 997, 4000, len(audio)):
        chunk, audio = audio[:size], audio[size:]
        for command in carried_out(one.receive(chunk)) if chunk else []:
            assert isinstance(command, Audio)
            for channel, samples in zip(heard, command.channels, strict=True):
                channel.extend((samples * 32768).tolist())
    assert heard == [list(range(0, 8000, 2)), list(range(1, 8000, 2))]


def test_two_channels_are_mixed_unless_multichannel() -> None:
    one = opened(f"{RAW}&channels=2")
    assert start_of(f"{RAW}&channels=2").request.channels == 1
    (command,) = carried_out(one.receive(np.array([1000, 3000, -500, -1500], "<i2").tobytes()))
    assert isinstance(command, Audio)
    assert (command.channels[0] * 32768).tolist() == [2000, -1000]


def test_control() -> None:
    one = opened()
    assert carried_out(one.receive('{"type": "KeepAlive"}')) == []
    assert carried_out(one.receive('{"type": "Finalize"}')) == [Finalize()]
    assert carried_out(one.receive('{"type": "CloseStream"}')) == [Close()]
    assert carried_out(one.receive(b"")) == [Close()]
    with pytest.raises(PeerError, match="KeepAlive, Finalize and CloseStream"):
        carried_out(one.receive('{"type": "Configure"}'))


def test_a_result() -> None:
    one = opened(f"{RAW}&vad_events=true", ("customer", "agent"))
    assert said(one, wire.speech_started(1, "agent", 16_000)) == [
        {"type": "SpeechStarted", "channel": [1, 2], "timestamp": 1.0}
    ]
    (result,) = said(one, emotion(1000, 2900, channel=1, role="agent", text="Hello there."))
    assert (result["type"], result["channel_index"], result["start"], result["duration"]) == (
        "Results",
        [1, 2],
        1.0,
        1.9,
    )
    assert (result["is_final"], result["speech_final"], result["from_finalize"]) == (True, True, False)
    (alternative,) = result["channel"]["alternatives"]
    assert (alternative["transcript"], alternative["words"], alternative["confidence"]) == ("Hello there.", [], 1.0)
    felt = alternative["emotion"]
    assert (felt["top"], felt["role"], felt["abstained"]) == ("angry", "agent", False)
    assert sum(felt["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert result["metadata"]["request_id"] == "session-1"


def test_an_interim_result_is_an_emotion_without_words() -> None:
    (result,) = said(opened(), emotion(0, 900, final=False, text=None, text_trusted=None))
    assert (result["is_final"], result["speech_final"]) == (False, False)
    (alternative,) = result["channel"]["alternatives"]
    assert (alternative["transcript"], alternative["confidence"]) == ("", 0.0)


def test_what_only_some_results_have_is_told_where_it_is_there() -> None:
    some: dict[str, Any] = {"modality_share": {"whisper": 0.75, "text": 0.25}, "members_used": ["voice"]}
    for more in ({}, some):
        (result,) = said(opened(), emotion(0, 900, **more))
        felt = result["channel"]["alternatives"][0]["emotion"]
        assert {name: felt[name] for name in some if name in felt} == more


def test_speech_that_goes_on_has_no_end() -> None:
    """Cut because it was too long, or where the client does not want to be told."""
    length_ms = MAX_UTTERANCE / 16
    (result,) = said(opened(), emotion(1000, length_ms - 500, endpoint_ms=1500))
    assert (result["is_final"], result["speech_final"]) == (True, False)
    (result,) = said(opened(f"{RAW}&endpointing=false"), emotion(1000, 2000))
    assert (result["is_final"], result["speech_final"]) == (True, False)


def test_what_finalize_cut_says_so() -> None:
    one = opened(f"{RAW}&endpointing=false")
    carried_out(one.receive(MS * 2000))
    carried_out(one.receive('{"type": "Finalize"}'))
    decided = 2000 * 16 // 512 * 32
    (before,) = said(one, emotion(0, 800))
    (cut,) = said(one, emotion(1000, 1950, endpoint_ms=decided - 1950))
    assert (before["from_finalize"], before["speech_final"]) == (False, False)
    assert (cut["from_finalize"], cut["speech_final"]) == (True, True)


def test_utterance_end_comes_on_the_audio_clock() -> None:
    """Once, when a second of audio has passed since the last words; the result may come before it or behind it."""
    wanted = {"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": 1.88}
    one = opened(f"{RAW}&utterance_end_ms=1000")
    carried_out(one.receive(MS * 2500))
    assert [each["type"] for each in said(one, emotion(1000, 2000))] == ["Results"]
    assert replies(one.receive(MS * 300)) == []
    assert replies(one.receive(MS * 100)) == [wanted]
    assert replies(one.receive(MS * 1000)) == []
    late = opened(f"{RAW}&utterance_end_ms=1000")
    carried_out(late.receive(MS * 3000))
    assert said(late, emotion(1000, 2000))[1:] == [wanted]


def test_utterance_end_does_not_come_into_speech() -> None:
    one = opened(f"{RAW}&utterance_end_ms=1000")
    carried_out(one.receive(MS * 2500))
    said(one, emotion(1000, 2000))
    said(one, wire.speech_started(0, "customer", 2600 * 16))
    assert replies(one.receive(MS * 2000)) == []


def test_metadata_is_the_last() -> None:
    one = opened()
    carried_out(one.receive(MS * 1500))
    (metadata,) = said(
        one,
        {"type": "session.closed", "reason": "client_closed", "totals": {"received_ms": 1500.0}},
    )
    assert (metadata["type"], metadata["duration"], metadata["channels"]) == ("Metadata", 1.5, 1)
    assert (metadata["request_id"], len(metadata["sha256"])) == ("session-1", 64)


DIALOGUE: list[Frame] = [
    MS * 100,
    '{"type": "KeepAlive"}',
    MS * 50,
    '{"type": "Finalize"}',
    MS[:17],
    '{"type": "CloseStream"}',
]


def test_mutations() -> None:
    survives_mutations(dialect, DIALOGUE)


def test_mutated_queries() -> None:
    """Whatever a query says: a stream, or 400 and why."""
    good = f"{RAW}&channels=2&multichannel=true&endpointing=300&utterance_end_ms=1000&language=en&tag=a&roles=a,b"
    refused = 0
    chance = np.random.default_rng(1)
    for _ in range(2000):
        text = list(good)
        for _ in range(int(chance.integers(1, 6))):
            text[int(chance.integers(len(text)))] = chr(int(chance.choice([0, 37, 38, 44, 48, 57, 61, 65, 97, 0x663])))
        query = dict(part.partition("=")[::2] for part in "".join(text).split("&"))
        made = DeepgramDialect(handshake("/v1/listen?" + "&".join(f"{k}={v}" for k, v in query.items())), RULES)
        if made.refusal() is None:
            carried_out(made.opening())
        else:
            refused += 1
    assert 200 < refused < 2000


# From here on with Deepgram's own SDK against a real daemon.


def environment(served: Served) -> DeepgramClientEnvironment:
    here = f"127.0.0.1:{served.port}"
    return DeepgramClientEnvironment(
        base=f"http://{here}", production=f"ws://{here}", agent=f"ws://{here}", agent_rest=f"http://{here}"
    )


@asynccontextmanager
async def listening(served: Served, **parameters: Any) -> AsyncIterator[tuple[Any, list[Any], "asyncio.Task[None]"]]:
    """A connection of the SDK, the messages it delivers, and the task that reads them to their end."""
    client = AsyncDeepgramClient(api_key="not-checked-yet", environment=environment(served))
    extra = {name: parameters.pop(name) for name in ("call_id", "roles") if name in parameters}
    async with (
        asyncio.timeout(WITHIN_S),
        client.listen.v1.connect(
            model="nova-3", request_options={"additional_query_parameters": extra}, **parameters
        ) as connection,
    ):
        messages: list[Any] = []

        async def read() -> None:
            async for message in connection:
                messages.append(message)

        yield connection, messages, asyncio.create_task(read())


def two_people() -> bytes:
    """Interleaved linear16: two sentences on the first channel, another one on the second."""
    one = np.frombuffer(linear16_of(TWO), "<i2")
    other = np.frombuffer(linear16_of(ASSETS / "hello_3s.flac"), "<i2")
    columns = np.zeros((len(one), 2), "<i2")
    columns[:, 0] = one
    columns[: len(other), 1] = other
    return columns.tobytes()


@in_module_loop
async def test_a_call_through_the_sdk(served: Served) -> None:
    """Two channels: results typed by the SDK, the emotion inside them, the same posteriors as offline to 1e-4."""
    audio = two_people()
    await served.calm()
    async with listening(
        served,
        **{"encoding": "linear16", "sample_rate": 16000, "channels": 2, "multichannel": True, "vad_events": True},
        **{
            "interim_results": True,
            "utterance_end_ms": 1000,
            "tag": "night",
            "call_id": "sdk",
            "roles": "customer,agent",
        },
    ) as (connection, messages, reading):
        for chunk in pieces(audio, 3001):
            await connection.send_media(chunk)
            await asyncio.sleep(
                len(chunk) / 4 / 16_000 / 2
            )  # faster than it is scored, a stream has no interim results
        await connection.send_close_stream()
        await reading
    wanted = await offline(audio, "linear16", 16_000)
    assert len(wanted) == 3
    events = await served.events("sdk")
    assert_same_events(events, wanted)
    assert (events[0]["meta_tag"], events[-1]["reason"]) == ("night", "client_closed")
    results = [message for message in messages if message.type == "Results"]
    assert any(not result.is_final for result in results)
    found = sorted((result for result in results if result.is_final), key=lambda r: (r.channel_index[0] == 0, r.start))
    assert [result.channel.alternatives[0].transcript for result in found] == [event["text"] for event in wanted]
    for result, event in zip(found, wanted, strict=True):
        assert result.channel_index == [int(event["channel"]), 2]
        assert result.start == pytest.approx(float(event["start_ms"]) / 1000)
        assert result.start + result.duration == pytest.approx(float(event["end_ms"]) / 1000)
        felt = result.channel.alternatives[0].emotion
        assert felt["top"] == event["top"]
        for name, probability in felt["probabilities"].items():
            assert probability == pytest.approx(float(event[f"p_{name}"]), abs=1e-4)
    assert sum(message.type == "SpeechStarted" for message in messages) == 3
    assert any(message.type == "UtteranceEnd" for message in messages)
    *_, last = messages
    assert (last.type, last.channels) == ("Metadata", 2)
    assert last.duration == pytest.approx(len(audio) / 4 / 16_000)


@in_module_loop
async def test_mulaw_through_the_sdk(served: Served) -> None:
    audio = g711.encode(telephone(TWO))
    async with listening(served, encoding="mulaw", sample_rate=8000, call_id="sdk-mulaw") as (
        connection,
        messages,
        reading,
    ):
        for chunk in pieces(audio, 160):
            await connection.send_media(chunk)
        await connection.send_close_stream()
        await reading
    wanted = await offline(audio, "mulaw", 8000, ("customer",))
    assert_same_events(await served.events("sdk-mulaw"), wanted)
    finals = [message for message in messages if message.type == "Results"]
    assert [message.channel.alternatives[0].transcript for message in finals] == [event["text"] for event in wanted]
    assert all(message.is_final and message.speech_final for message in finals)


@in_module_loop
async def test_finalize_through_the_sdk(served: Served) -> None:
    """In the middle of a sentence: what was said so far is a result at once, and the stream goes on."""
    audio = linear16_of(TWO)
    async with listening(served, encoding="linear16", sample_rate=16000) as (connection, messages, reading):
        await connection.send_media(audio[: 2 * 24_000])
        await connection.send_finalize()
        await until(lambda: bool(messages), within_s=WITHIN_S)
        (first,) = messages
        assert (first.is_final, first.speech_final, first.from_finalize) == (True, True, True)
        assert first.start + first.duration <= 1.5
        await connection.send_media(audio[2 * 24_000 :])
        await connection.send_close_stream()
        await reading
    assert not any(message.from_finalize for message in messages[1:-1])
    assert len(messages) >= 4


@in_module_loop
async def test_keep_alive_and_silence(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """With KeepAlive a silent client stays; without, it is closed as Deepgram closes it."""
    monkeypatch.setattr(DeepgramDialect, "idle_timeout_s", 0.6)
    async with asyncio.timeout(WITHIN_S), connect(f"ws://127.0.0.1:{served.port}/v1/listen?{RAW}") as connection:
        for _ in range(6):
            await asyncio.sleep(0.2)
            await connection.send('{"type": "KeepAlive"}')
        begun = time.monotonic()
        messages = [json.loads(message) async for message in _until_closed(connection)]
    assert time.monotonic() - begun > 0.3, "KeepAlive did not count"
    assert connection.close_code == 1011
    assert (connection.close_reason or "").startswith("NET-0001")
    assert [message["type"] for message in messages] == ["Error", "Metadata"]


async def _until_closed(connection: Any) -> AsyncIterator[str]:
    try:
        async for message in connection:
            yield message
    except ConnectionClosed:
        pass  # the code says what it was


@in_module_loop
async def test_a_bad_query_is_told_to_the_sdk(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """To the asynchronous client as its own error, to the other one as that of its WebSocket library."""
    with pytest.raises(ApiError) as told:
        async with listening(served, encoding="opus", sample_rate=48000):
            pass
    assert told.value.status_code == 400
    client = DeepgramClient(api_key="not-checked-yet", environment=environment(served))

    def call() -> None:
        with client.listen.v1.connect(model="nova-3", encoding="opus", sample_rate=48000):
            pass

    with pytest.raises(InvalidStatus) as caught:
        await asyncio.to_thread(call)
    assert b"encoding 'opus' is not taken" in caught.value.response.body
    assert caplog.records == [], "a client's mistake is no error of ours"


@in_module_loop
async def test_a_browser_shows_its_key_as_a_subprotocol(served: Served) -> None:
    url = f"ws://127.0.0.1:{served.port}/v1/listen?{RAW}"
    async with connect(url, subprotocols=["token", "abc"]) as connection:  # type: ignore[list-item] # a plain str
        assert connection.subprotocol == "token"
    with pytest.raises(InvalidStatus) as caught:
        await connect(f"{url}&endpointing=x")
    assert b"endpointing is 'x'" in caught.value.response.body


def test_credentials() -> None:
    for headers in ({"authorization": "Token abc"}, {"authorization": "bearer abc"}, {"authorization": "Token  abc "}):
        assert handshake(headers=headers).credentials == "abc"
    assert handshake(subprotocols=("token", "abc")).credentials == "abc"
    assert handshake(subprotocols=("bearer", "abc")).credentials == "abc"
    assert handshake(headers={"x-hume-api-key": "abc"}).credentials == "abc"
    for headers in ({}, {"authorization": "Basic abc"}, {"authorization": "Token "}, {"authorization": "abc"}):
        assert handshake(headers=headers).credentials is None
    assert handshake(subprotocols=("chat",)).credentials is None
