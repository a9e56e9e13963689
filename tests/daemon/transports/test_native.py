"""The native protocol against broken messages and queries, and its Opus packets."""

import asyncio
import json
import random
from typing import Any, Final
from urllib.parse import urlencode

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.client import stream
from daemon.errors import CLOSE_BAD_DATA, CLOSE_UNSUPPORTED, ConfigError, PeerError
from daemon.transports.dialect import Audio, Frame, Resume, Start
from daemon.transports.native import NativeDialect
from daemon.transports.opus import OpusDecoder, packet_samples
from model.audio import SAMPLE_RATE_HZ
from tests.daemon.transports.conftest import MUTATIONS, carried_out, handshake, survives_mutations
from tests.daemon.transports.whip_client import PACKET, RATE_HZ, Sound, opus_packets

START: Final[dict[str, Any]] = {
    "type": "start",
    "encoding": "linear16",
    "sample_rate": 16_000,
    "channels": 2,
    "roles": ["customer", "agent"],
    "language": "en",
    "interim_ms": 500,
    "call_id": "call-1",
    "resume": True,
    "metadata": {"queue": "billing"},
    "token": "secret",
}
CONTROL: Final[list[Frame]] = [
    '{"type": "keep_alive"}',
    bytes(640),
    '{"type": "finalize"}',
    bytes(320),
    '{"type": "close"}',
]
RESUME: Final = '{"type": "resume", "resume": "5AqI1pHrWnQ0z6yQkqDNRGLZ0rCeDkLb", "after": 17, "token": "secret"}'
ALL: Final = {name: value for name, value in START.items() if name not in ("type", "token")} | {
    "roles": "customer,agent",
    "metadata": '{"queue": "billing"}',
    "resume": "true",
}
"""As a query has them."""


def dialect(query: str = "") -> NativeDialect:
    return NativeDialect(handshake(f"/v1/stream?{query}" if query else "/v1/stream"))


def tone(seconds: float) -> Sound:
    """Another note on each channel."""
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    both = [3000 * np.sin(2 * np.pi * note * time) for note in (440, 660)]
    return np.stack(both, axis=1).astype(np.int16)


PACKETS: Final = opus_packets(tone(0.5))


def test_mutations() -> None:
    survives_mutations(dialect, [json.dumps(START), bytes(640), *CONTROL])


def test_mutated_resumptions() -> None:
    """Good ones are asked for; others begin nothing."""
    survives_mutations(dialect, [RESUME])
    (command,) = dialect().receive(RESUME)
    assert command == Resume("5AqI1pHrWnQ0z6yQkqDNRGLZ0rCeDkLb", 17)


def test_mutated_queries() -> None:
    """Whatever a query says: a stream, or an error that says why."""
    (good,) = carried_out(NativeDialect(asked(ALL)).opening())
    assert isinstance(good, Start)
    assert good.request.role_names() == ("customer", "agent")
    chance, refused = random.Random(5), 0
    odd = ["", "-1", "9" * 40, "٣", "\x00", "opus", "a,,b", "{", "[" * 900, "true", "nan", "x" * 3000]
    for _ in range(MUTATIONS):
        query = dict(ALL)
        for _ in range(chance.randrange(1, 3)):
            name = chance.choice([*ALL, "more"])
            if chance.random() < 0.3:
                query.pop(name, None)
            else:
                query[name] = chance.choice([*odd, chance.choice(list(ALL.values()))])
        try:
            carried_out(NativeDialect(asked(query)).opening())
        except PeerError as error:
            refused += bool(error.code and error.message)
    assert MUTATIONS // 4 < refused < MUTATIONS


def asked(query: dict[str, Any]) -> Any:
    """A handshake with that query; one that needs no parsing."""
    made = handshake("/v1/stream")
    return type(made)(f"{made.url}?{urlencode(query)}", {n: str(v) for n, v in query.items()}, {}, ())


def test_opus_packets_are_decoded_as_they_come() -> None:
    one = dialect("encoding=opus&channels=2")
    (start,) = carried_out(one.opening())
    assert isinstance(start, Start)
    heard = [audio for packet in PACKETS for audio in carried_out(one.receive(packet))]
    heard += carried_out(one.flush())
    assert all(isinstance(audio, Audio) for audio in heard)
    counts = [audio.received for audio in heard if isinstance(audio, Audio)]
    assert counts == [PACKET] * len(PACKETS) + [0], "in samples at 48 kHz"
    left, right = (
        np.concatenate([audio.channels[channel] for audio in heard if isinstance(audio, Audio)]) for channel in (0, 1)
    )
    assert len(left) == len(right) == len(PACKETS) * PACKET * SAMPLE_RATE_HZ // RATE_HZ
    for samples, note in ((left, 440), (right, 660)):
        spectrum = np.abs(np.fft.rfft(samples[SAMPLE_RATE_HZ // 10 :]))
        peak = np.argmax(spectrum) * SAMPLE_RATE_HZ / (2 * (len(spectrum) - 1))
        assert peak == pytest.approx(note, abs=5)


def test_one_channel_hears_both() -> None:
    both, one = OpusDecoder(2), OpusDecoder(1)
    for packet in PACKETS:
        left, right = both.decode(packet)
        (mixed,) = one.decode(packet)
        np.testing.assert_allclose(mixed, (left + right) / 2, atol=1e-5)


@pytest.mark.parametrize(
    ("configuration", "milliseconds"),
    [
        (0, 10),
        (1, 20),
        (2, 40),
        (3, 60),
        (11, 60),
        (12, 10),
        (15, 20),
        (16, 2.5),
        (17, 5),
        (18, 10),
        (19, 20),
        (31, 20),
    ],
)
def test_the_length_of_a_packet_is_that_of_the_specification(configuration: int, milliseconds: float) -> None:
    """RFC 6716, table 2, and 3.2 for several frames."""
    first, samples = configuration << 3, round(milliseconds * 48)
    assert [packet_samples(bytes([first | code])) for code in (0, 1, 2)] == [samples, 2 * samples, 2 * samples]
    assert packet_samples(bytes([first | 3, 2])) == 2 * samples


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"", "the message is empty"),
        (b"OggS\0\2", "a file of Ogg: send the Opus packets in it, one a message"),
        (b"\x1aE\xdf\xa3\x9f", "a file of WebM"),
        (b"\x03", "1 bytes is no Opus packet: it would have 0 frames"),
        (b"\x1b\x3f" + bytes(60), "63 frames of 2880"),
        (b"\x0a\xff", "2 bytes is no Opus packet: Invalid data"),
    ],
)
def test_what_is_no_packet_is_refused(message: bytes, says: str) -> None:
    with pytest.raises(PeerError, match=says) as caught:
        OpusDecoder(1).decode(message)
    assert (caught.value.code, caught.value.close_code) == ("bad_frame", CLOSE_BAD_DATA)


broken = st.tuples(st.sampled_from(PACKETS), st.integers(0, 200), st.binary(max_size=3)).map(
    lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + len(parts[2]) :]
)


@settings(max_examples=1000, deadline=None, database=None)
@given(message=st.binary(max_size=64) | broken)
def test_any_bytes_are_a_packet_of_known_length_or_none(message: bytes) -> None:
    decoder = OpusDecoder(2)
    try:
        channels = decoder.decode(message)
    except PeerError:
        return
    rest = decoder.flush()
    for got, last in zip(channels, rest, strict=True):
        assert np.isfinite(got).all()
        assert len(got) + len(last) == pytest.approx(packet_samples(message) / 3, abs=1)
        assert len(got) + len(last) <= 1920, "120 ms: a small message is never much audio"


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_opus_has_one_rate(rate: int) -> None:
    with pytest.raises(PeerError, match=f"{rate} is none of Opus: leave it out, or say 48000") as caught:
        carried_out(dialect(f"encoding=opus&sample_rate={rate}").opening())
    assert (caught.value.code, caught.value.close_code) == ("bad_sample_rate", CLOSE_UNSUPPORTED)
    carried_out(dialect("encoding=opus&sample_rate=48000").opening())


def test_an_unknown_encoding_is_told_all_that_there_are() -> None:
    with pytest.raises(PeerError, match="'mp3' is not known; use one of linear16, float32, mulaw, alaw, opus"):
        carried_out(dialect("encoding=mp3").opening())


def test_packets_cannot_outlive_their_connection_in_our_client() -> None:
    async def nothing() -> Any:
        yield b""

    async def streaming() -> None:
        async for _ in stream("ws://127.0.0.1:1/v1/stream", nothing(), reconnect_s=5.0, encoding="opus"):
            raise AssertionError("it began")

    with pytest.raises(ConfigError, match="leave reconnect_s out"):
        asyncio.run(streaming())
