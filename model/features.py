"""Features computed in numpy, the same at training and run time, and the batching of variable-length frames.

Shapes: T = samples, F = frames (10 ms), B = batch, d = width of a frame.
"""

from collections.abc import Sequence
from functools import cache
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from model.audio import MEL_HOP, SAMPLE_RATE_HZ, Samples, frame_count

Frames = npt.NDArray[np.float32]
"""`float32 [F, d]`."""
Real = TypeVar("Real", np.float16, np.float32)

_RANGE_DB: Final = 50.0
"""Loudness range below an utterance's mean power that counts: what lies deeper is the recording's noise floor."""

_PITCH_WINDOW: Final = 640
"""Samples under one pitch window (40 ms: more than two periods of the lowest pitch)."""
_PITCH_LOWEST_HZ: Final = 65.0
_PITCH_HIGHEST_HZ: Final = 500.0
_PITCH_REFERENCE_HZ: Final = 160.0
_SILENCE: Final = 1e-12
"""Power below which nothing was recorded at all."""

_VOICED: Final = 0.5
"""Normalised autocorrelation above which a frame counts as voiced."""

_OCTAVE_COST: Final = 0.02
"""What a peak must be higher by for every octave that it lies lower: a period fits twice into two periods."""

PROSODY_DIM: Final = 4
"""Pitch (octaves), voicing, loudness and its slope."""


def prosody_frames(audio: Samples) -> Frames:
    """How an utterance is spoken, whatever the microphone: `float32 [ceil(T / 160), 4]`.

    Pitch in octaves around 160 Hz (0 where unvoiced), voicing in 0..1, loudness in nepers around the utterance's own
    mean power, and the slope of loudness. No spectrum: its level and colour are the recording's as much as the voice's,
    and they did harm on recordings of another corpus (docs/LOG.md, 2026-11-21). Each frame depends on its utterance alone.

    Raises:
        ValueError: if the audio is empty or holds a value that is not finite.
    """
    if audio.ndim != 1 or len(audio) == 0:
        raise ValueError(f"prosody needs one channel with at least one sample, got shape {list(audio.shape)}")
    if not np.isfinite(audio).all():
        raise ValueError("prosody needs finite samples: the audio holds NaN or infinity")
    windows = _frame(audio, frame_count(len(audio), MEL_HOP), _PITCH_WINDOW)
    pitch, voicing = _pitch(windows)
    power = (windows**2).mean(axis=1)
    relative = power / max(float(power.mean()), _SILENCE)
    loudness = 0.5 * np.log(relative + 10.0 ** (-_RANGE_DB / 10.0))
    slope = np.gradient(loudness) if len(loudness) > 1 else np.zeros_like(loudness)
    return np.stack([pitch, voicing, loudness, slope], axis=1).astype(np.float32)


_VARIANCE_FLOOR: Final = 1e-7
"""Added to the variance, as the feature extractors of wav2vec 2.0 and its kin do."""


def standardise(audio: Samples) -> Samples:
    """An utterance `float32 [T]` with mean 0 and variance 1, over itself alone and before any padding.

    What `do_normalize` means in the published configurations of wav2vec 2.0, HuBERT and WavLM.

    Raises:
        ValueError: if there is no sample.
    """
    if not len(audio):
        raise ValueError("an utterance to standardise has at least one sample, got 0")
    exact = audio.astype(np.float64)
    scaled: Samples = ((exact - exact.mean()) / np.sqrt(exact.var() + _VARIANCE_FLOOR)).astype(np.float32)
    return scaled


def _frame(audio: Samples, count: int, width: int) -> Samples:
    """`[count, width]` windows centred on the middle of each hop, zeros beyond the edges."""
    before = (width - MEL_HOP) // 2
    after = max(0, (count - 1) * MEL_HOP + width - before - len(audio))
    padded = np.pad(audio, (before, after))
    return np.lib.stride_tricks.sliding_window_view(padded, width)[: count * MEL_HOP : MEL_HOP]


def _pitch(windows: Samples) -> tuple[Samples, Samples]:
    """Pitch in octaves (0 where unvoiced) and voicing in 0..1 from the normalised autocorrelation.

    Source: Boersma (1993), "Accurate short-term analysis of the fundamental frequency": the window's own autocorrelation is
    divided out, and of peaks as high as each other the one with the shortest period counts.
    """
    shortest = int(SAMPLE_RATE_HZ / _PITCH_HIGHEST_HZ)
    longest = int(SAMPLE_RATE_HZ / _PITCH_LOWEST_HZ)
    centred = (windows - windows.mean(axis=1, keepdims=True)) * np.hanning(_PITCH_WINDOW).astype(np.float32)
    correlation = _autocorrelation(centred)
    normalised = correlation / np.maximum(correlation[:, :1], _SILENCE) / _window_autocorrelation()
    around = normalised[:, shortest - 1 : longest + 2]
    peaks = around[:, 1:-1]
    rising = (peaks >= around[:, :-2]) & (peaks >= around[:, 2:])
    octaves_down = np.log2(np.arange(shortest, longest + 1) / shortest).astype(np.float32)
    best = np.where(rising, peaks - _OCTAVE_COST * octaves_down, -1.0).argmax(axis=1)
    rows = np.arange(len(peaks))
    voicing = np.where(rising[rows, best], np.clip(peaks[rows, best], 0.0, 1.0), 0.0)
    hz = SAMPLE_RATE_HZ / (shortest + best)
    octaves = np.where(voicing >= _VOICED, np.log2(hz / _PITCH_REFERENCE_HZ), 0.0)
    return octaves.astype(np.float32), voicing.astype(np.float32)


def _autocorrelation(windows: Samples) -> Samples:
    spectrum = np.fft.rfft(windows, 2 * _PITCH_WINDOW, axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    return np.fft.irfft(power, axis=1)[:, : _PITCH_WINDOW // 2].astype(np.float32)


@cache
def _window_autocorrelation() -> Samples:
    own = _autocorrelation(np.hanning(_PITCH_WINDOW).astype(np.float32)[None])
    return own / own[:, :1]


FUNCTIONALS_STEPS: Final = 3
"""The whole utterance, its first half, its second half."""
_SPOKEN: Final = 2
"""Columns of the prosody frames that functionals read, pitch and voicing: the spread of loudness is the recording's."""


def functionals(whisper: Frames, prosody: Frames) -> Frames:
    """Mean and deviation over time of Whisper's frames and of pitch and voicing, `float32 [3, 2 (d_w + 2)]`.

    The classic utterance-level functionals of the field, of the whole utterance and of each half: three steps, because
    attention over a single one would learn nothing.
    """
    steps = [_functional(whisper, prosody)]
    for half in (slice(None, -(-len(whisper) // 2)), slice(len(whisper) // 2, None)):
        scale = len(prosody) / len(whisper)
        begin, end, _ = half.indices(len(whisper))
        steps.append(
            _functional(whisper[half], prosody[int(begin * scale) : max(int(begin * scale) + 1, int(end * scale))])
        )
    return np.stack(steps)


def functionals_dim(whisper_dim: int) -> int:
    """Width of `functionals` over Whisper frames of `whisper_dim`."""
    return 2 * (whisper_dim + _SPOKEN)


def _functional(whisper: Frames, prosody: Frames) -> Frames:
    spoken = prosody[:, :_SPOKEN]
    parts = [part for frames in (whisper, spoken) for part in (frames.mean(axis=0), frames.std(axis=0))]
    return np.concatenate(parts, dtype=np.float32)


def collate(frames: Sequence[Frames], multiple: int) -> tuple[Frames, npt.NDArray[np.bool_]]:
    """Right-pads frames of different length to one: `float32 [B, F, d]` and its mask `bool [B, F]`.

    F is a multiple of `multiple` and at least that, so a batch of empty frames (no transcript) has a shape too.

    Raises:
        ValueError: if there are no rows or their widths differ.
    """
    return padded(frames, multiple, np.float32)


def padded(
    frames: Sequence[npt.NDArray[np.float16 | np.float32]], multiple: int, dtype: type[Real]
) -> tuple[npt.NDArray[Real], npt.NDArray[np.bool_]]:
    """As `collate`, in another type: `[B, F, d]` of `dtype`."""
    widths = {rows.shape[1] for rows in frames}
    if len(widths) != 1:
        raise ValueError(f"a batch holds frames of exactly one width, got {sorted(widths)}")
    longest = max(1, *(len(rows) for rows in frames))
    length = -(-longest // multiple) * multiple
    batch: npt.NDArray[Real] = np.empty((len(frames), length, widths.pop()), dtype)
    mask = np.zeros((len(frames), length), np.bool_)
    for row, values in enumerate(frames):
        batch[row, : len(values)] = values
        batch[row, len(values) :] = 0
        mask[row, : len(values)] = True
    return batch, mask
