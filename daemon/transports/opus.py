"""Opus packets, one a message, to 16 kHz samples per channel: what a page's `AudioEncoder` or an RTP payload holds.

No container: a packet says how long it is, and nothing else says where it belongs. What a sender leaves out is not there.

Source: RFC 6716, 3.1 and 3.2 for the length of a packet; libopus through PyAV.
"""

from typing import Final

import av
import numpy as np

from daemon.errors import CLOSE_BAD_DATA, CLOSE_UNSUPPORTED, PeerError
from daemon.resample import CHANNELS, StreamResampler
from model.audio import Samples

OPUS: Final = "opus"
"""What streams call this encoding."""
OPUS_RATE_HZ: Final = 48_000
"""Of Opus's clock, whatever rate its encoder was given."""

_LONGEST: Final = 5_760
"""Samples of a packet: 120 ms."""
_CONTAINERS: Final = {b"OggS": "Ogg", b"\x1aE\xdf\xa3": "WebM"}
_FULL_SCALE: Final = 32768.0


def packet_samples(packet: bytes) -> int:
    """Length of a packet in samples per channel at 48 kHz.

    Raises:
        PeerError: if it is none.
    """
    if (container := _CONTAINERS.get(packet[:4])) is not None:
        raise _broken(f"the message begins a file of {container}: send the Opus packets in it, one a message")
    if not packet:
        raise _broken("the message is empty; it is one Opus packet")
    configuration, code = packet[0] >> 3, packet[0] & 3
    if configuration < 12:
        frame = (480, 960, 1920, 2880)[configuration & 3]
    elif configuration < 16:
        frame = (480, 960)[configuration & 1]
    else:
        frame = (120, 240, 480, 960)[configuration & 3]
    many = packet[1] & 63 if code == 3 and len(packet) > 1 else 0
    frames = (1, 2, 2, many)[code]
    if not 0 < frames * frame <= _LONGEST:
        raise _broken(f"a message of {len(packet)} bytes is no Opus packet: it would have {frames} frames of {frame}")
    return frames * frame


class OpusCodec:
    """Decodes the packets of one stream at Opus's own rate.

    Args:
        channels: 2 keeps both channels of a packet, 1 mixes them.

    Raises:
        PeerError: if there are more or fewer.
    """

    def __init__(self, channels: int) -> None:
        if channels not in CHANNELS:
            raise PeerError("bad_channels", f"channels {channels} is not 1 or 2", CLOSE_UNSUPPORTED)
        self._channels = channels
        self._codec = av.CodecContext.create("libopus", "r")
        assert isinstance(self._codec, av.AudioCodecContext)
        self._codec.sample_rate, self._codec.layout, self._codec.format = OPUS_RATE_HZ, "stereo", "s16"

    def decode(self, packet: bytes) -> Samples:
        """Samples at 48 kHz, `float32 [channels, T]`.

        Raises:
            PeerError: if the message is no packet.
        """
        wanted = packet_samples(packet)
        try:
            frames = self._codec.decode(av.Packet(packet))
        except av.error.FFmpegError as error:
            raise _broken(f"a message of {len(packet)} bytes is no Opus packet: {error.strerror}") from error
        decoded = [frame.to_ndarray().reshape(-1, 2) for frame in frames]
        stereo = np.concatenate(decoded, dtype=np.float32).T if decoded else np.zeros((2, 0), np.float32)
        if stereo.shape[1] != wanted:
            raise _broken(f"an Opus packet of {wanted} samples was decoded to {stereo.shape[1]}")
        if self._channels == 1:
            return (stereo[:1] + stereo[1:]) * np.float32(0.5 / _FULL_SCALE)
        return np.ascontiguousarray(stereo) / np.float32(_FULL_SCALE)


class OpusDecoder:
    """Decodes the messages of one stream to 16 kHz.

    Args:
        channels: 2 keeps both channels of a packet, 1 mixes them.

    Raises:
        PeerError: if there are more or fewer.
    """

    def __init__(self, channels: int) -> None:
        self._codec = OpusCodec(channels)
        self._resamplers = [StreamResampler(OPUS_RATE_HZ) for _ in range(channels)]

    def decode(self, packet: bytes) -> list[Samples]:
        """Samples at 16 kHz of every channel, `float32 [T]`.

        Raises:
            PeerError: if the message is no packet.
        """
        return [
            resampler.push(samples)
            for resampler, samples in zip(self._resamplers, self._codec.decode(packet), strict=True)
        ]

    def flush(self) -> list[Samples]:
        """What the resamplers still hold at the end of the stream."""
        return [resampler.flush() for resampler in self._resamplers]


def _broken(problem: str) -> PeerError:
    return PeerError("bad_frame", problem, CLOSE_BAD_DATA)
