"""Bytes to samples: every encoding means what its standard says, and no chunking shows."""

import math

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.errors import CLOSE_BAD_DATA, CLOSE_UNSUPPORTED, PeerError
from daemon.resample import ENCODINGS, HIGHEST_RATE_HZ, LOWEST_RATE_HZ, AudioDecoder
from model.audio import SAMPLE_RATE_HZ, Samples

RATES_HZ = (8_000, 16_000, 22_050, 44_100, 48_000)
G711 = {"mulaw": "pcm_mulaw", "alaw": "pcm_alaw"}
"""Our name -> FFmpeg's."""


def decoded(messages: list[bytes], encoding: str = "linear16", rate: int = 16_000, channels: int = 1) -> list[Samples]:
    """A whole stream, one array per channel."""
    decoder = AudioDecoder(encoding, rate, channels)
    parts = [decoder.decode(message) for message in messages]
    parts.append(decoder.flush())
    return [np.concatenate(of_channel) for of_channel in zip(*parts, strict=True)]


def encoded(samples: Samples, encoding: str) -> bytes:
    """Interleaved or mono samples as a client would send them; G.711 by FFmpeg."""
    if encoding == "float32":
        return samples.astype("<f4").tobytes()
    linear = np.round(samples * 32767).astype("<i2")
    if encoding == "linear16":
        return linear.tobytes()
    codec = av.CodecContext.create(G711[encoding], "w")
    assert isinstance(codec, av.AudioCodecContext)
    codec.sample_rate, codec.format, codec.layout = 8_000, "s16", "mono"
    frame = av.AudioFrame.from_ndarray(linear[None], format="s16", layout="mono")
    frame.sample_rate = 8_000
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])


def tone(hz: float, rate: int, seconds: float = 0.5) -> Samples:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("encoding", G711)
def test_every_g711_code_means_what_ffmpeg_says(encoding: str) -> None:
    codec = av.CodecContext.create(G711[encoding], "r")
    assert isinstance(codec, av.AudioCodecContext)
    codec.sample_rate, codec.layout = 8_000, "mono"
    codes = bytes(range(256))
    (frame,) = codec.decode(av.Packet(codes))
    (samples,) = decoded([codes], encoding)
    np.testing.assert_array_equal(samples * 32768, frame.to_ndarray()[0])


def test_linear16_is_little_endian_and_full_scale_is_one() -> None:
    (samples,) = decoded([b"\x00\x80" + b"\xff\x7f" + b"\x01\x00" + b"\x00\x01"])
    assert samples.tolist() == [-1.0, 32767 / 32768, 1 / 32768, 256 / 32768]
    assert samples.dtype == np.float32


def test_float32_beyond_full_scale_is_clipped() -> None:
    given_samples = np.array([0.25, -1.0, 1.5, -3e38], "<f4")
    (samples,) = decoded([given_samples.tobytes()], "float32")
    assert samples.tolist() == [0.25, -1.0, 1.0, -1.0]


@pytest.mark.parametrize("rate", RATES_HZ)
@pytest.mark.parametrize(
    ("encoding", "tolerance"), [("linear16", 1e-3), ("float32", 1e-3), ("mulaw", 0.03), ("alaw", 0.03)]
)
def test_a_tone_keeps_its_pitch_place_and_length(rate: int, encoding: str, tolerance: float) -> None:
    (samples,) = decoded([encoded(tone(440, rate), encoding)], encoding, rate)
    expected = tone(440, SAMPLE_RATE_HZ)
    assert abs(len(samples) - len(expected)) <= 1
    middle = slice(100, len(expected) - 100)  # the filter sees silence beyond the ends
    np.testing.assert_allclose(samples[middle], expected[middle], atol=tolerance)


@pytest.mark.parametrize("rate", RATES_HZ)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_stereo_is_two_streams(rate: int, encoding: str) -> None:
    left, right = tone(300, rate), tone(700, rate)
    both = decoded([encoded(np.stack([left, right], axis=1).ravel(), encoding)], encoding, rate, channels=2)
    assert len(both) == 2
    for channel, alone in zip(both, (left, right), strict=True):
        (expected,) = decoded([encoded(alone, encoding)], encoding, rate)
        np.testing.assert_array_equal(channel, expected)


def pieces(data: bytes, frame: int, points: list[int]) -> list[bytes]:
    edges = [0, *(point * frame for point in points), len(data)]
    return [data[begin:end] for begin, end in zip(edges[:-1], edges[1:], strict=True)]


_ROUNDING = 2e-7
"""The resampler adds up in another order where a vector instruction meets the end of a message; full scale is 1."""


@given(
    encoding=st.sampled_from(list(ENCODINGS)),
    rate=st.sampled_from(RATES_HZ) | st.integers(LOWEST_RATE_HZ, HIGHEST_RATE_HZ),
    channels=st.sampled_from([1, 2]),
    frames=st.integers(0, 6_000),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_chunking_gives_the_same_samples(
    encoding: str, rate: int, channels: int, frames: int, data: st.DataObject
) -> None:
    frame = ENCODINGS[encoding] * channels
    points = data.draw(st.lists(st.integers(0, frames), max_size=40).map(sorted), label="points")
    noise = np.random.default_rng(data.draw(st.integers(0, 9), label="seed"))
    stream = noise.bytes(frames * frame)
    if encoding == "float32":
        stream = noise.uniform(-1.5, 1.5, frames * channels).astype("<f4").tobytes()
    whole = decoded([stream], encoding, rate, channels)
    cut = decoded(pieces(stream, frame, points), encoding, rate, channels)
    for one, other in zip(whole, cut, strict=True):
        assert len(one) == len(other)
        np.testing.assert_allclose(one, other, rtol=0, atol=_ROUNDING)


@given(message=st.binary(max_size=64), encoding=st.sampled_from(list(ENCODINGS)), channels=st.sampled_from([1, 2]))
def test_any_bytes_give_samples_or_an_error(message: bytes, encoding: str, channels: int) -> None:
    frame = ENCODINGS[encoding] * channels
    decoder = AudioDecoder(encoding, SAMPLE_RATE_HZ, channels)
    whole = len(message) % frame == 0
    if whole and (encoding != "float32" or np.isfinite(np.frombuffer(message, "<f4")).all()):
        found = decoder.decode(message)
        assert [len(samples) for samples in found] == [len(message) // frame] * channels
        assert all((abs(samples) <= 1).all() for samples in found)
    else:
        with pytest.raises(PeerError) as caught:
            decoder.decode(message)
        assert caught.value.code == ("not_finite" if whole else "bad_frame")


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_part_of_a_frame_is_refused(encoding: str, channels: int) -> None:
    frame = ENCODINGS[encoding] * channels
    decoder = AudioDecoder(encoding, 8_000, channels)
    for length in range(frame + 1, 2 * frame):
        with pytest.raises(PeerError, match=rf"of {length} bytes is no whole number of {frame}-byte frames") as caught:
            decoder.decode(bytes(length))
        assert (caught.value.code, caught.value.close_code) == ("bad_frame", CLOSE_BAD_DATA)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rate", [8_000, 16_000])
def test_numbers_that_are_not_finite_are_refused_before_they_reach_the_stream(rate: int, wrong: float) -> None:
    good = tone(440, rate)
    bad: npt.NDArray[np.float32] = good.copy()
    bad[-1] = wrong
    decoder = AudioDecoder("float32", rate, 1)
    with pytest.raises(PeerError, match="NaN or infinity") as caught:
        decoder.decode(bad.tobytes())
    assert (caught.value.code, caught.value.close_code) == ("not_finite", CLOSE_BAD_DATA)
    after = np.concatenate([decoder.decode(good.tobytes())[0], decoder.flush()[0]])
    np.testing.assert_array_equal(after, decoded([good.tobytes()], "float32", rate)[0])


@pytest.mark.parametrize(
    ("encoding", "rate", "channels", "code", "message"),
    [
        ("opus", 48_000, 1, "bad_encoding", "'opus' is not known; use one of linear16, float32, mulaw, alaw"),
        ("", 16_000, 1, "bad_encoding", "'' is not known"),
        ("linear16", LOWEST_RATE_HZ - 1, 1, "bad_sample_rate", "3999 lies outside 4000..192000 Hz"),
        ("linear16", HIGHEST_RATE_HZ + 1, 1, "bad_sample_rate", "192001 lies outside"),
        ("linear16", -16_000, 1, "bad_sample_rate", "-16000 lies outside"),
        ("linear16", 16_000, 0, "bad_channels", "channels 0 is not 1 or 2"),
        ("linear16", 16_000, 3, "bad_channels", "channels 3 is not 1 or 2"),
    ],
)
def test_a_stream_that_cannot_be_taken_is_refused(
    encoding: str, rate: int, channels: int, code: str, message: str
) -> None:
    with pytest.raises(PeerError, match=message) as caught:
        AudioDecoder(encoding, rate, channels)
    assert (caught.value.code, caught.value.close_code) == (code, CLOSE_UNSUPPORTED)


@pytest.mark.parametrize("rate", [LOWEST_RATE_HZ, 16_000, HIGHEST_RATE_HZ])
def test_a_stream_without_audio_gives_none(rate: int) -> None:
    assert [len(samples) for samples in decoded([], rate=rate, channels=2)] == [0, 0]
    assert [len(samples) for samples in decoded([b"", b""], rate=rate, channels=2)] == [0, 0]
