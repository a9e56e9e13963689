"""One recording through every door: each gives what the same audio gives offline, in whatever codec it came."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import av
import numpy as np
import pytest
import pytest_asyncio
from streamdouble import g711
from websockets.asyncio.client import ClientConnection, connect

from tests.daemon.conftest import ASSETS, Served, linear16_of, pieces
from tests.daemon.transports.conftest import assert_same_events, offline, telephone
from tests.daemon.transports.whip_client import (
    RATE_HZ,
    SoundTrack,
    needs_network,
    opus_packets,
    sound_of,
    through_opus,
    whip,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

TWO: Final = ASSETS / "two_sentences.flac"
ID: Final = "d7934305-0972-4844-938e-9060eef73d05"
WITHIN_S: Final = 60.0
FRAME_MS: Final = 20

Codec = tuple[str, int, int]
"""Encoding, rate in Hz, channels."""
Events = list[dict[str, str]]

WIDE: Final[Codec] = ("linear16", 16_000, 1)
NARROW: Final[Codec] = ("linear16", 8000, 1)
MULAW: Final[Codec] = ("mulaw", 8000, 1)
ALAW: Final[Codec] = ("alaw", 8000, 1)
OPUS: Final[Codec] = ("linear16", RATE_HZ, 2)
"""Both channels of an Opus stream, as they are decoded."""


def alaw_of(samples: "np.typing.NDArray[np.int16]") -> bytes:
    """By FFmpeg's encoder, so that it is not our own table read backwards."""
    codec = av.CodecContext.create("pcm_alaw", "w")
    assert isinstance(codec, av.AudioCodecContext)
    codec.sample_rate, codec.layout, codec.format = 8000, "mono", "s16"
    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    frame.sample_rate = 8000
    return b"".join(bytes(packet) for given in (frame, None) for packet in codec.encode(given))


def audio_of(codec: Codec) -> bytes:
    """The recording as that codec leaves it."""
    if codec == OPUS:
        return through_opus(sound_of(TWO))
    if codec == WIDE:
        return linear16_of(TWO)
    samples = telephone(TWO)
    samples = samples[: len(samples) // 160 * 160]
    encoders: dict[Codec, Callable[[Any], bytes]] = {
        NARROW: lambda s: bytes(s.tobytes()),
        MULAW: g711.encode,
        ALAW: alaw_of,
    }
    return encoders[codec](samples)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def wanted() -> dict[Codec, Events]:
    found = {}
    for codec in (WIDE, NARROW, MULAW, ALAW, OPUS):
        encoding, rate, channels = codec
        roles = ("customer", "agent")[:channels]
        found[codec] = await offline(audio_of(codec), encoding, rate, roles)
        assert len(found[codec]) == 2 * channels
    return found


def door(served: Served, path: str) -> connect:
    return connect(f"ws://127.0.0.1:{served.port}{path}")


async def played(connection: ClientConnection, messages: Sequence[str | bytes]) -> list[dict[str, Any]]:
    """What is said until the server closes the connection."""
    for message in messages:
        await connection.send(message)
    return [json.loads(text) async for text in connection]


async def native(served: Served, codec: Codec, call: str) -> str:
    encoding, rate, _ = codec
    chunks = pieces(audio_of(codec), 3200)
    await served.stream(chunks, encoding=encoding, sample_rate=rate, call_id=call, interim_ms=0)
    return call


async def native_float32(served: Served, codec: Codec, call: str) -> str:
    samples = np.frombuffer(audio_of(codec), "<i2") / np.float32(32768)
    chunks = pieces(samples.astype("<f4").tobytes(), 6400)
    await served.stream(chunks, encoding="float32", sample_rate=codec[1], call_id=call, interim_ms=0)
    return call


async def native_opus(served: Served, codec: Codec, call: str) -> str:
    await served.stream(opus_packets(sound_of(TWO)), encoding="opus", channels=2, call_id=call, interim_ms=0)
    return call


async def over_whip(served: Served, codec: Codec, call: str) -> str:
    track = SoundTrack(sound_of(TWO), speed=2.0)
    async with whip(served.port, track, f"?call_id={call}&interim_ms=0", stereo=True) as session:
        await asyncio.wait_for(track.ended.wait(), WITHIN_S)
        await asyncio.sleep(0.3)
        await session.close()
    return call


async def deepgram(served: Served, codec: Codec, call: str) -> str:
    encoding, rate, _ = codec
    async with door(served, f"/v1/listen?encoding={encoding}&sample_rate={rate}&call_id={call}") as connection:
        await played(connection, [*pieces(audio_of(codec), 3200), '{"type": "CloseStream"}'])
    return call


async def hume(served: Served, codec: Codec, call: str) -> str:
    async with door(served, "/v1/expression/audio/realtime") as connection:
        told = await played(connection, [*pieces(audio_of(codec), 3200), '{"type": "session.close"}'])
    return str(told[0]["session_id"])


async def audiohook(served: Served, codec: Codec, call: str) -> str:
    names = {"linear16": "L16", "mulaw": "PCMU"}
    media = {"type": "audio", "format": names[codec[0]], "channels": ["external"], "rate": codec[1]}
    opening = {"organizationId": ID, "conversationId": call, "participant": {"id": ID}, "media": [media]}

    def message(kind: str, seq: int, parameters: dict[str, Any]) -> str:
        envelope = {"version": "2", "id": ID, "type": kind, "seq": seq, "serverseq": seq - 1, "position": "PT0S"}
        return json.dumps(envelope | {"parameters": parameters})

    async with door(served, "/audiohook") as connection:
        await connection.send(message("open", 1, opening))
        assert json.loads(await connection.recv())["type"] == "opened"
        for chunk in pieces(audio_of(codec), 1600):
            await connection.send(chunk)
        await connection.send(message("close", 2, {"reason": "end"}))
        assert json.loads(await connection.recv())["type"] == "closed"
    return call


def carried(audio: bytes, sequence: str) -> list[dict[str, Any]]:
    """The media of one track, 20 ms a message, as Twilio and Telnyx have them in common."""
    return [
        {
            "event": "media",
            sequence: str(index + 2),
            "media": {
                "track": "inbound",
                "timestamp": str(FRAME_MS * index),
                "payload": base64.b64encode(payload).decode(),
            },
        }
        for index, payload in enumerate(pieces(audio, 160))
    ]


async def twilio(served: Served, codec: Codec, call: str) -> str:
    format = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
    start = {"callSid": call, "tracks": ["inbound"], "mediaFormat": format}
    forked = [{"event": "start", "start": start}, *carried(audio_of(codec), "sequenceNumber"), {"event": "stop"}]
    async with door(served, "/twilio") as connection:
        assert await played(connection, [json.dumps(message) for message in forked]) == []
    return call


async def telnyx(served: Served, codec: Codec, call: str) -> str:
    format = {"encoding": {"mulaw": "PCMU", "alaw": "PCMA"}[codec[0]], "sample_rate": 8000, "channels": 1}
    start = {"call_control_id": call, "media_format": format, "custom_parameters": {"tracks": "inbound"}}
    forked = [{"event": "start", "start": start}, *carried(audio_of(codec), "sequence_number"), {"event": "stop"}]
    async with door(served, "/telnyx") as connection:
        assert await played(connection, [json.dumps(message) for message in forked]) == []
    return call


Door = Callable[[Served, Codec, str], Awaitable[str]]
DOORS: Final[list[tuple[Door, Codec]]] = [
    *[(native, codec) for codec in (WIDE, NARROW, MULAW, ALAW)],
    (native_float32, WIDE),
    (native_opus, OPUS),
    *[(deepgram, codec) for codec in (WIDE, NARROW, MULAW, ALAW)],
    (hume, WIDE),
    *[(audiohook, codec) for codec in (NARROW, MULAW)],
    (twilio, MULAW),
    *[(telnyx, codec) for codec in (MULAW, ALAW)],
]


@pytest.mark.parametrize(
    ("door", "codec"),
    [
        *[pytest.param(*each, id=f"{each[0].__name__}-{'-'.join(map(str, each[1][:2]))}") for each in DOORS],
        pytest.param(over_whip, OPUS, id="whip", marks=needs_network),
    ],
)
async def test_the_same_recording_is_the_same_call(
    served: Served, wanted: dict[Codec, Events], door: Door, codec: Codec, request: pytest.FixtureRequest
) -> None:
    """The same utterances and words, and posteriors to 1e-4: a door costs nothing but what its codec costs."""
    call = "".join(letter for letter in request.node.name if letter.isalnum())
    async with asyncio.timeout(WITHIN_S):
        name = await door(served, codec, call)
        events = await served.events(name)
    assert_same_events(events, wanted[codec])
    assert (events[-1]["type"], events[-1]["reason"]) == ("call.ended", "client_closed")


async def test_what_a_codec_costs_is_little(wanted: dict[Codec, Events]) -> None:
    """Else equality above could be that of noise: the same two sentences, at the same times, in every codec."""
    plain = wanted[WIDE]
    for codec, events in wanted.items():
        mine = [event for event in events if event["role"] == "customer"]
        for one, other in zip(mine, plain, strict=True):
            assert abs(float(one["start_ms"]) - float(other["start_ms"])) <= 150, codec
            assert abs(float(one["end_ms"]) - float(other["end_ms"])) <= 150, codec
        assert "order" in mine[0]["text"], codec
        assert "Friday" in mine[1]["text"], codec
