"""Rates, units and the cutting rules that training and serving share.

Time inside the project is an integer number of samples at 16 kHz; seconds and milliseconds appear only at the edges
(command lines, wire messages). Every constant here is derived from another one or says why it has its value.

Shapes: T = samples, F = feature frames.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
"""`float32 [T], 16 kHz mono, +-1`."""

SAMPLE_RATE_HZ: Final = 16_000
SAMPLES_PER_MS: Final = SAMPLE_RATE_HZ // 1000

VAD_WINDOW: Final = 512
"""Samples that one speech probability covers (32 ms, fixed by Silero VAD at 16 kHz)."""

MEL_HOP: Final = 160
"""Samples between two log-mel frames (10 ms, Whisper's and the field's usual step)."""

WHISPER_HOP: Final = 2 * MEL_HOP
"""Samples between two Whisper encoder frames: its second convolution has stride 2."""

PRE_PAD: Final = 200 * SAMPLES_PER_MS
"""Audio kept before an utterance's first speech window: soft onsets lie below the detector's threshold."""

POST_PAD: Final = 120 * SAMPLES_PER_MS
"""Audio kept after an utterance's last speech window, whatever the endpoint silence is, so that an utterance's audio
is final long before its endpoint is declared."""

MIN_UTTERANCE: Final = 400 * SAMPLES_PER_MS
"""Shortest audio that is scored; shorter input is padded with zeros up to it."""

MAX_UTTERANCE: Final = 20 * SAMPLE_RATE_HZ
"""Longest utterance: longer speech is cut (the members saw clips of a few seconds; Whisper ends at 30 s)."""

BUCKET_MARGIN: Final = 3 * SAMPLE_RATE_HZ
"""Least silence behind an utterance inside its padded bucket: with one second, Whisper's decoder repeats the sentence to
fill the window in a third of short utterances, with three in one of twenty (docs/LOG.md, 2026-11-21)."""

BUCKET_STEPS: Final = (SAMPLE_RATE_HZ, 4 * SAMPLE_RATE_HZ)
"""Steps that buckets are rounded up to: up to `_FINE_LIMIT`, and beyond."""
_FINE_LIMIT: Final = 8 * SAMPLE_RATE_HZ
WHISPER_WINDOW: Final = 30 * SAMPLE_RATE_HZ
"""The input length Whisper was trained on, and the longest bucket."""


def samples_from_ms(milliseconds: float) -> int:
    """Milliseconds to samples at 16 kHz, rounded to the nearest."""
    return round(milliseconds * SAMPLES_PER_MS)


def ms_from_samples(samples: int) -> float:
    """Samples at 16 kHz to milliseconds."""
    return samples / SAMPLES_PER_MS


def bucket_length(samples: int) -> int:
    """Padded length of an utterance of `samples` samples: a pure function of its own length.

    The Whisper encoder has no attention mask, so its speech frames change with the padded length. Every padded length
    is therefore decided here alone, the same in training, export and serving: the utterance and `BUCKET_MARGIN`, rounded
    up to whole seconds (beyond eight to steps of four, to keep the number of shapes small).

    Raises:
        ValueError: if `samples` is not positive or does not fit Whisper's 30 s window.
    """
    if samples <= 0:
        raise ValueError(f"an utterance has at least one sample, got {samples}")
    wanted = samples + BUCKET_MARGIN
    if wanted > WHISPER_WINDOW:
        limit_s = (WHISPER_WINDOW - BUCKET_MARGIN) / SAMPLE_RATE_HZ
        raise ValueError(f"an utterance is at most {limit_s:g} s, got {samples / SAMPLE_RATE_HZ:g} s: cut it first")
    fine, coarse = BUCKET_STEPS
    step = fine if wanted <= _FINE_LIMIT else coarse
    return min(-(-wanted // step) * step, WHISPER_WINDOW)


def frame_count(samples: int, hop: int) -> int:
    """Number of feature frames that hold `samples` samples of audio, the last one included if only partly filled."""
    return -(-samples // hop)


def pad_to(audio: Samples, length: int) -> Samples:
    """`audio` with zeros behind it, `length` samples in all.

    Raises:
        ValueError: if `audio` is longer than `length`.
    """
    if len(audio) > length:
        raise ValueError(f"cannot pad {len(audio)} samples to {length}")
    return np.pad(audio, (0, length - len(audio))).astype(np.float32, copy=False)
