"""Opus there and back, in memory: what voice over the internet leaves of a recording.

Source: RFC 6716 (the codec), RFC 7845 section 4.2 (the pre-skip by which a decoder takes the encoder's delay away).

Shapes: T = samples.
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import Final

import av
import numpy as np
import numpy.typing as npt
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.packet import Packet

from model.audio import SAMPLE_RATE_HZ, Samples

_FRAME: Final = SAMPLE_RATE_HZ // 50
"""20 ms, what calls use."""
_FLUSH: Final = 5 * _FRAME
"""Silence behind the end: more than encoder and resampler hold back."""


def through_opus(samples: Samples, kbit_s: float) -> Samples:
    """`samples` as Opus for voice gives them back, `float32 [T]`, in time with the input.

    Args:
        samples: `float32 [T]`, 16 kHz mono, +-1.
        kbit_s: bit rate, 6 to 128.

    Raises:
        ValueError: if the bit rate lies outside of that.
    """
    if not 6.0 <= kbit_s <= 128.0:
        raise ValueError(f"the bit rate of Opus lies between 6 and 128 kbit/s, got {kbit_s:g}")
    encoder = _codec("w")
    encoder.sample_rate, encoder.layout, encoder.format = SAMPLE_RATE_HZ, "mono", "flt"
    encoder.time_base = Fraction(1, SAMPLE_RATE_HZ)
    encoder.bit_rate = round(1000 * kbit_s)
    encoder.options = {"application": "voip", "frame_duration": "20"}
    encoder.open()
    decoder = _codec("r")
    decoder.extradata = encoder.extradata  # names the pre-skip
    resampler = AudioResampler("flt", "mono", SAMPLE_RATE_HZ)  # decoders of Opus speak 48 kHz
    heard = [
        frame.to_ndarray()[0]
        for packet in (*_packets(encoder, samples), None)
        for decoded in decoder.decode(packet)
        for frame in resampler.resample(decoded)
    ]
    heard += [frame.to_ndarray()[0] for frame in resampler.resample(None)]
    return np.ascontiguousarray(np.concatenate(heard)[: len(samples)], np.float32)


def _codec(mode: str) -> AudioCodecContext:
    codec = av.CodecContext.create("libopus", mode)  # type: ignore[call-overload]  # the mode is a word, not a variable
    assert isinstance(codec, AudioCodecContext)
    return codec


def _packets(encoder: AudioCodecContext, samples: Samples) -> "Iterator[Packet[AudioStream]]":
    padded: npt.NDArray[np.float32] = np.pad(samples, (0, _FLUSH + -len(samples) % _FRAME))
    for start in range(0, len(padded), _FRAME):
        frame = AudioFrame.from_ndarray(padded[None, start : start + _FRAME], format="flt", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE_HZ, start
        yield from encoder.encode(frame)
    yield from encoder.encode(None)
