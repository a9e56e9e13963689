"""Callers at the pace of speech: one call each, through a door, and what it heard.

native   linear16 at 16 kHz in messages of 40 ms; results come on the connection
twilio   one track ("inbound") of mu-law at 8 kHz in messages of 20 ms; nothing comes back
whip     one Opus track from aiortc: `bench.whip`, in processes of its own
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import av
import numpy as np
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from bench.under_test import stream_url
from daemon.client import paced, stream
from daemon.resample import AudioDecoder
from model.audio import SAMPLE_RATE_HZ, Samples

DOORS: Final = ("native", "twilio", "whip")
_PATIENCE_S: Final = 120.0
"""How long behind the end of its audio a call may take to be ended by its server."""
_UNENDED: Final = f"not ended {_PATIENCE_S:.0f} s behind its audio"
_TWILIO_HZ: Final = 8000
_TWILIO_MS: Final = 20
_TWILIO_BYTES: Final = _TWILIO_HZ * _TWILIO_MS // 1000
_MULAW_SILENCE: Final = b"\xff"


@dataclass(slots=True)
class Heard:
    """What one call was told.

    Attributes:
        call: its id.
        failed: why it ended before its audio did; empty if it did not.
        times: wait and work of every final result, ms.
        ids: event ids of the final results; None where the door tells nothing.
        interims: interim results.
        dropped: interim results that were left out.
        gaps: audio that did not arrive, as often as it was told.
        missing_ms: how much of it, by reason.
    """

    call: str
    failed: str = ""
    times: list[tuple[float, float]] = field(default_factory=list)
    ids: list[str] | None = None
    interims: int = 0
    dropped: int = 0
    gaps: int = 0
    missing_ms: dict[str, float] = field(default_factory=dict)

    def hear(self, message: dict[str, Any]) -> None:
        """Takes a message of the native protocol, which WHIP's data channel speaks too."""
        if message["type"] == "emotion" and message["final"]:
            latency = message["latency_ms"]
            work = sum(latency[stage] for stage in ("queue", "asr", "encoders", "fusion"))
            self.times.append((latency["total"], work))
            self.ids = [*(self.ids or []), message["event_id"]]
        elif message["type"] == "gap":
            self.gaps += 1
            self.missing_ms[message["reason"]] = self.missing_ms.get(message["reason"], 0.0) + message["duration_ms"]
        elif message["type"] == "session.closed":
            self.interims, self.dropped = message["totals"]["interims"], message["totals"]["dropped_interims"]


async def native(port: int, call: str, audio: Samples, interim_ms: int) -> Heard:
    """A call of `float32 [1, T]` at 16 kHz over `/v1/stream`."""
    heard = Heard(call, ids=[])
    messages = stream(stream_url(port), paced(audio), sample_rate=SAMPLE_RATE_HZ, interim_ms=interim_ms, call_id=call)
    try:
        async with asyncio.timeout(audio.shape[1] / SAMPLE_RATE_HZ + _PATIENCE_S):
            async for message in messages:
                heard.hear(message)
    except TimeoutError:
        heard.failed = _UNENDED
    except ConnectionError as error:
        heard.failed = str(error)
    return heard


async def twilio(port: int, call: str, frames: Sequence[str], interim_ms: int) -> Heard:
    """A call of `twilio_frames`, forked as Twilio does it."""
    heard = Heard(call)
    length_s = len(frames) * _TWILIO_MS / 1000
    try:
        async with (
            asyncio.timeout(length_s + _PATIENCE_S),
            connect(f"ws://127.0.0.1:{port}/twilio", ping_timeout=None) as connection,
        ):
            for message in _twilio_opening(call, interim_ms):
                await connection.send(message)
            async for frame in _paced_frames(frames):
                await connection.send(frame)
            await connection.send(json.dumps({"event": "stop", "streamSid": "MZ0", "stop": {"callSid": call}}))
            await connection.wait_closed()
            if connection.close_code != 1000:
                heard.failed = f"closed with {connection.close_code} {connection.close_reason}"
    except TimeoutError:
        heard.failed = _UNENDED
    except (OSError, ConnectionClosed, InvalidHandshake) as error:
        heard.failed = str(error)
    return heard


def twilio_frames(audio: Samples) -> list[str]:
    """The media messages of `float32 [1, T]` at 16 kHz; made before they are sent, for making them costs."""
    encoded = mulaw(audio)
    frames = []
    for index, first in enumerate(range(0, len(encoded), _TWILIO_BYTES)):
        payload = encoded[first : first + _TWILIO_BYTES].ljust(_TWILIO_BYTES, _MULAW_SILENCE)
        media = {
            "track": "inbound",
            "chunk": str(index + 1),
            "timestamp": str(_TWILIO_MS * index),
            "payload": base64.b64encode(payload).decode(),
        }
        message = {"event": "media", "sequenceNumber": str(index + 2), "streamSid": "MZ0", "media": media}
        frames.append(json.dumps(message))
    return frames


def through_telephone(audio: Samples) -> Samples:
    """What a server makes of `twilio_frames`, `float32 [1, T]` at 16 kHz."""
    encoded = mulaw(audio)
    encoded += _MULAW_SILENCE * (-len(encoded) % _TWILIO_BYTES)
    decoder = AudioDecoder("mulaw", _TWILIO_HZ, 1)
    return np.concatenate([*decoder.decode(encoded), *decoder.flush()])[None]


def mulaw(audio: Samples) -> bytes:
    """`float32 [1, T]` at 16 kHz as mu-law at 8 kHz."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio), format="fltp", layout="mono")
    frame.sample_rate = SAMPLE_RATE_HZ
    resampler = av.AudioResampler("s16", layout="mono", rate=_TWILIO_HZ)
    encoder = av.CodecContext.create("pcm_mulaw", "w")
    assert isinstance(encoder, av.AudioCodecContext)
    encoder.sample_rate, encoder.layout, encoder.format = _TWILIO_HZ, "mono", "s16"
    blocks = [block for given in (frame, None) for block in resampler.resample(given)]
    return b"".join(bytes(packet) for block in [*blocks, None] for packet in encoder.encode(block))


def _twilio_opening(call: str, interim_ms: int) -> list[str]:
    media_format = {"encoding": "audio/x-mulaw", "sampleRate": _TWILIO_HZ, "channels": 1}
    start = {
        "accountSid": "AC0",
        "streamSid": "MZ0",
        "callSid": call,
        "tracks": ["inbound"],
        "mediaFormat": media_format,
        "customParameters": {"interim_ms": str(interim_ms)},
    }
    connected = {"event": "connected", "protocol": "Call", "version": "1.0.0"}
    return [
        json.dumps(connected),
        json.dumps({"event": "start", "sequenceNumber": "1", "streamSid": "MZ0", "start": start}),
    ]


async def _paced_frames(frames: Sequence[str]) -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for index, frame in enumerate(frames):
        await asyncio.sleep(begun + (index + 1) * _TWILIO_MS / 1000 - loop.time())
        yield frame
