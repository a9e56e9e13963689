"""A whole daemon, from the WebSocket to what Redis holds."""

import asyncio
import json
import re
from typing import Any

import av
import numpy as np
import pytest
from websockets.asyncio.client import connect

from model.audio import SAMPLE_RATE_HZ, Samples
from model.labels import ATTRIBUTES, CLASSES
from model.recording import read_mono, read_recording
from tests.daemon.conftest import ASSETS, CALL, Message, Served, finals, linear16_of, of_type, pieces

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO = ASSETS / "hello_3s.flac"
TWO = ASSETS / "two_sentences.flac"


async def receive(connection: Any, kind: str, *, final: bool | None = None) -> Message:
    """Reads on to the next message of a type."""
    async with asyncio.timeout(30):
        async for text in connection:
            message: Message = json.loads(text)
            if message["type"] == kind and final in (None, message.get("final")):
                return message
    raise AssertionError(f"the stream ended without {kind}")


def resampled(path: Any, rate: int) -> Samples:
    """A recording at another rate, `float32 [T]`."""
    audio = read_mono(path)
    resampler = av.AudioResampler("fltp", layout="mono", rate=rate)
    frame = av.AudioFrame.from_ndarray(audio[None], format="fltp", layout="mono")
    frame.sample_rate = SAMPLE_RATE_HZ
    blocks = [out.to_ndarray()[0] for out in [*resampler.resample(frame), *resampler.resample(None)]]
    joined: Samples = np.concatenate(blocks)
    return joined


def mulaw(audio: Samples) -> bytes:
    """G.711 mu-law, through FFmpeg's encoder."""
    encoder = av.CodecContext.create("pcm_mulaw", "w")
    encoder.sample_rate, encoder.layout, encoder.format = 8000, "mono", "s16"
    pcm = np.round(np.clip(audio, -1, 1) * 32767).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
    frame.sample_rate = 8000
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


async def test_health_and_readiness(served: Served) -> None:
    status, body = await served.get("/health")
    assert (status, json.loads(body)) == (200, {"status": "alive", "model": served.daemon.bundle_id})
    status, body = await served.get("/ready")
    assert (status, json.loads(body)) == (200, {"ready": True, "problem": None})


async def test_metrics_count_streams_and_utterances(served: Served) -> None:
    async def count(name: str) -> float:
        _, page = await served.get("/metrics")
        found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
        return float(found[1]) if found else 0.0

    names = ("medusa_streams_accepted_total", 'medusa_utterances_total{kind="final"}', "medusa_emotion_items_total")
    before = [await count(name) for name in names]
    await served.stream(pieces(linear16_of(HELLO)), interim_ms=0)
    assert [await count(name) for name in names] == [value + 1 for value in before]
    assert await count('medusa_stage_seconds_count{stage="total"}') >= 1
    assert await count("medusa_streams") == 0


async def test_a_streamed_file_gives_its_utterances(served: Served) -> None:
    audio = linear16_of(TWO)
    messages = await served.stream(pieces(audio), call_id="two", roles="caller", interim_ms=0)
    created, closed = messages[0], messages[-1]
    assert created["type"] == "session.created"
    assert (created["call"], created["roles"], created["model"]) == ("two", ["caller"], served.daemon.bundle_id)
    assert set(created["trained_classes"]) <= set(CLASSES)
    first, second = finals(messages)
    assert "order" in first["text"]
    assert "Friday" in second["text"]
    assert 0 <= first["start_ms"] < first["end_ms"] <= second["start_ms"] < second["end_ms"] <= len(audio) / 32
    for message in (first, second):
        assert list(message["probabilities"]) == list(CLASSES)
        assert sum(message["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
        assert message["confidence"] == max(message["probabilities"].values())
        assert message["probabilities"][message["top"]] == message["confidence"]
        latency = message["latency_ms"]
        assert set(latency) == {"endpoint", "queue", "asr", "encoders", "fusion", "total"}
        assert latency["total"] > 0
    assert [message["role"] for message in of_type(messages, "speech.started")] == ["caller", "caller"]
    assert closed["totals"] == {
        "received_ms": len(audio) / 32,
        "utterances": 2,
        "finals": 2,
        "interims": 0,
        "dropped_interims": 0,
    }
    assert closed["reason"] == "client_closed"


async def test_seq_counts_every_message(served: Served) -> None:
    messages = await served.stream(pieces(linear16_of(TWO)), interim_ms=200)
    assert [message["seq"] for message in messages] == list(range(len(messages)))
    assert messages[-1]["type"] == "session.closed"


async def test_redis_holds_what_the_client_got(served: Served) -> None:
    """In the same order, value for value, between the call's begin and end."""
    metadata = {"queue": "lamps"}
    messages = await served.stream(
        pieces(linear16_of(TWO)), call_id="mirror", interim_ms=300, metadata=json.dumps(metadata)
    )
    begun, *stored, ended = await served.events("mirror")
    received = of_type(messages, "emotion")
    assert [fields["event_id"] for fields in stored] == [message["event_id"] for message in received]
    for fields, message in zip(stored, received, strict=True):
        assert fields["type"] == ("emotion" if message["final"] else "emotion.interim")
        assert (fields["top"], fields["role"], fields["model"]) == (message["top"], message["role"], message["model"])
        assert (fields["text"], fields["lang"]) == (message["text"] or "", message["language"] or "")
        numbers = {name: message[name] for name in ("start_ms", "end_ms", "confidence", "uncertainty", *ATTRIBUTES)}
        numbers |= {f"p_{name}": message["probabilities"][name] for name in CLASSES}
        for name, value in numbers.items():
            assert fields[name] == "" if value is None else float(fields[name]) == pytest.approx(value, abs=1e-6)
    assert (begun["type"], begun["meta_queue"], begun["call"]) == ("call.started", "lamps", "mirror")
    assert (ended["type"], ended["reason"]) == ("call.ended", "client_closed")
    totals = messages[-1]["totals"]
    assert {name: float(ended[f"total_{name}"]) for name in totals} == totals


async def test_each_channel_of_a_stereo_call_is_its_role(served: Served) -> None:
    """The demo call holds a customer on the left and an agent on the right; each said what is stored beside it."""
    turns = json.loads(CALL.with_suffix(".json").read_text())["turns"]
    messages = await served.stream(
        pieces(linear16_of(CALL), 32_000), channels=2, roles="customer,agent", interim_ms=0, call_id="stereo"
    )
    got = finals(messages)
    assert {(message["channel"], message["role"]) for message in got} == {(0, "customer"), (1, "agent")}
    for message in got:
        overlapping = [
            turn for turn in turns if turn["start_ms"] < message["end_ms"] and message["start_ms"] < turn["end_ms"]
        ]
        assert message["role"] in {turn["role"] for turn in overlapping}
    said = {role: sum(turn["role"] == role for turn in turns) for role in ("customer", "agent")}
    heard = {role: sum(message["role"] == role for message in got) for role in said}
    assert all(heard[role] >= said[role] / 2 for role in said)
    assert (await served.events("stereo"))[0]["role"] == "customer,agent"


@pytest.mark.parametrize(
    ("encoding", "rate"), [("float32", 16_000), ("float32", 48_000), ("linear16", 48_000), ("mulaw", 8_000)]
)
async def test_other_encodings_and_rates_say_the_same(served: Served, encoding: str, rate: int) -> None:
    audio = resampled(HELLO, rate) if rate != SAMPLE_RATE_HZ else read_mono(HELLO)
    data = {
        "float32": lambda: audio.astype("<f4").tobytes(),
        "linear16": lambda: np.round(np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes(),
        "mulaw": lambda: mulaw(audio),
    }[encoding]()
    plain = finals(await served.stream(pieces(linear16_of(HELLO)), interim_ms=0))
    messages = await served.stream(pieces(data, 4000), encoding=encoding, sample_rate=rate, interim_ms=0)
    got = finals(messages)
    assert ["order" in message["text"] for message in got] == [True]
    for one, other in zip(got, plain, strict=True):
        assert one["start_ms"] == pytest.approx(other["start_ms"], abs=100)
        assert one["end_ms"] == pytest.approx(other["end_ms"], abs=100)
    seconds = read_recording(HELLO).shape[1] / SAMPLE_RATE_HZ
    assert messages[-1]["totals"]["received_ms"] == pytest.approx(1000 * seconds, abs=10)


async def test_interim_results_come_while_somebody_speaks(served: Served) -> None:
    """Before the utterance's end is even sent; they carry no words, and the final one replaces them."""
    audio = linear16_of(TWO)
    await served.calm()
    async with connect(f"{served.url}?interim_ms=500") as connection:
        await connection.send(audio[: 2 * 32_000])
        interim = await receive(connection, "emotion")
        assert (interim["final"], interim["utterance"], interim["text"]) == (False, 0, None)
        assert interim["end_ms"] <= 2000
        await connection.send(audio[2 * 32_000 :])
        final = await receive(connection, "emotion", final=True)
        assert (final["utterance"], final["start_ms"]) == (0, interim["start_ms"])
        assert final["end_ms"] > interim["end_ms"]


async def test_no_interim_results_if_none_are_wanted(served: Served) -> None:
    messages = await served.stream(pieces(linear16_of(TWO)), interim_ms=0)
    assert all(message["final"] for message in of_type(messages, "emotion"))


async def test_finalize_ends_the_utterance_and_not_the_stream(served: Served) -> None:
    audio = linear16_of(TWO)
    middle = 2 * 32_000  # inside the first sentence
    async with connect(f"{served.url}?interim_ms=0") as connection:
        await connection.send(audio[:middle])
        await connection.send(json.dumps({"type": "finalize"}))
        early = await receive(connection, "emotion")
        assert (early["final"], early["utterance"]) == (True, 0)
        assert early["end_ms"] <= 2000
        await connection.send(audio[middle:])
        await connection.send(json.dumps({"type": "close"}))
        rest = await receive(connection, "emotion")
        assert rest["utterance"] == 1
        assert rest["start_ms"] >= early["end_ms"]
        closed = await receive(connection, "session.closed")
        assert closed["totals"]["finals"] == closed["totals"]["utterances"] == 3


async def test_keep_alive_is_taken_and_a_start_message_does_what_a_query_does(served: Served) -> None:
    start = {"type": "start", "encoding": "linear16", "roles": ["guest"], "call_id": "started", "interim_ms": 0}
    async with connect(served.url) as connection:
        await connection.send(json.dumps(start))
        created = await receive(connection, "session.created")
        assert (created["call"], created["roles"]) == ("started", ["guest"])
        for chunk in pieces(linear16_of(HELLO), 32_000):
            await connection.send(json.dumps({"type": "keep_alive"}))
            await connection.send(chunk)
        await connection.send(json.dumps({"type": "close"}))
        assert (await receive(connection, "emotion"))["role"] == "guest"
        assert (await receive(connection, "session.closed"))["reason"] == "client_closed"
        await connection.wait_closed()
        assert connection.close_code == 1000
