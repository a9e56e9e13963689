"""Audio files to samples, through PyAV (FFmpeg): any format, any rate, resampled to 16 kHz."""

from pathlib import Path

import av
import numpy as np

from model.audio import SAMPLE_RATE_HZ, Samples


class RecordingError(ValueError):
    """The file holds no readable audio; the message says which file and why."""


def read_recording(path: Path | str) -> Samples:
    """All channels of a recording, `float32 [channels, T]` at 16 kHz.

    Raises:
        RecordingError: if the file is missing, is no audio, or holds no samples.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise RecordingError(f"{path} holds no audio stream")
            layout = container.streams.audio[0].layout.name
            resampler = av.AudioResampler(format="fltp", layout=layout, rate=SAMPLE_RATE_HZ)
            blocks = [
                resampled.to_ndarray() for frame in container.decode(audio=0) for resampled in resampler.resample(frame)
            ]
            blocks += [resampled.to_ndarray() for resampled in resampler.resample(None)]
    except (av.error.FFmpegError, OSError) as error:
        raise RecordingError(f"cannot read audio from {path}: {error}") from error
    if not blocks:
        raise RecordingError(f"{path} holds no audio samples")
    return np.concatenate(blocks, axis=1).astype(np.float32, copy=False)


def read_mono(path: Path | str) -> Samples:
    """A recording mixed down to one channel, `float32 [T]`.

    Raises:
        RecordingError: as `read_recording`.
    """
    mono: Samples = read_recording(path).mean(axis=0, dtype=np.float32)
    return mono
