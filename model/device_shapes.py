"""Few shapes for devices: every new one costs a GPU an allocation, a choice of kernels, or an engine.

Batches are rounded up to `ROWS`, lengths to the buckets below. What is added is masked, or is a copy of the last row whose
results nobody reads: nothing that was there before changes by it.

On a CPU only what a network would hear is rounded (`model.audio.bucket_length`, `SPEECH_STEP`): padding takes time there.

Shapes: R = rows, T = samples or tokens, F = frames, M = mel bands, d = width of a frame.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model.audio import (
    MAX_UTTERANCE,
    MEL_HOP,
    MIN_UTTERANCE,
    SAMPLE_RATE_HZ,
    WHISPER_HOP,
    WHISPER_WINDOW,
    bucket_length,
)
from model.bundle import SPEECH_AUDIO, SPEECH_AUDIO_MASK, TEXT_INPUTS, WHISPER_INPUT, mask_of
from model.features import FUNCTIONALS_STEPS
from model.spec import EncoderSpec
from model.text import MAX_TOKENS

ROWS: Final = (1, 2, 4, 8, 16, 32)
"""Rows of a batch; a larger one has a multiple of the last."""
SPEECH_HOP: Final = 320
"""Samples between two frames of a speech transformer, in every published checkpoint."""
SHORTEST_SPEECH: Final = 400
"""Samples that one frame of a speech transformer hears (25 ms, in every published checkpoint): the shortest utterance."""
SPEECH_FRAMES: Final = 25
"""Frames that a batch of a speech transformer is rounded up to a multiple of: half a second, forty lengths up to 20 s."""
TEXT_STEP: Final = 16
"""Tokens that a batch of texts is rounded up to a multiple of: eight lengths."""
_USUAL_ROWS: Final = 8
_USUAL: Final = 4 * SAMPLE_RATE_HZ
"""What engines are made fastest for: eight utterances of 4 s."""

Size = tuple[int, ...]
Profile = Mapping[str, tuple[Size, Size, Size]]
"""Input -> its smallest, usual and largest shape."""


def rows_for(count: int) -> int:
    """Rows of a batch of `count` utterances.

    Raises:
        ValueError: if there are none.
    """
    if count < 1:
        raise ValueError(f"a batch has at least one utterance, got {count}")
    most = ROWS[-1]
    return next((rows for rows in ROWS if rows >= count), -(-count // most) * most)


def speech_frames_for(samples: int, stack: int) -> int:
    """Frames of a batch whose longest utterance has `samples` samples: a multiple of `stack`, as members read them."""
    frames = max(1, (samples - SHORTEST_SPEECH) // SPEECH_HOP + 1)
    return _up(_up(frames, SPEECH_FRAMES), stack)


def speech_length_for(samples: int, stack: int) -> int:
    """Samples of that batch: as many as give exactly those frames, and not fewer than `samples`."""
    return speech_frames_for(samples, stack) * SPEECH_HOP + SHORTEST_SPEECH - 1


def tokens_for(count: int) -> int:
    """Tokens of a batch of texts whose longest has `count`."""
    return min(_up(max(1, count), TEXT_STEP), MAX_TOKENS)


def frames_for(count: int, stack: int) -> int:
    """Frames that the ensemble reads of a modality whose longest utterance has `count`.

    `stack` times 1, 2, 3, 4, 6, 8, 12, ...: two lengths per octave, whatever a modality's rate.
    """
    steps = max(1, -(-count // stack))
    power = 1 << (steps - 1).bit_length()
    return stack * (3 * power // 4 if power >= 4 and steps <= 3 * power // 4 else power)


def filled(rows: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """`[B, ...]` to `[count, ...]`: the last row again and again, which is finite where zeros behind a mask may not be."""
    return rows if len(rows) == count else np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])


def speech_profile(spec: EncoderSpec, rows: int) -> Profile:
    """Shapes of a speech transformer."""
    usual = (min(_USUAL_ROWS, rows), speech_length_for(_USUAL, spec.stack))
    shapes = ((1, SHORTEST_SPEECH), usual, (rows, speech_length_for(MAX_UTTERANCE, spec.stack)))
    names = (SPEECH_AUDIO,) if spec.equal_lengths else (SPEECH_AUDIO, SPEECH_AUDIO_MASK)
    return dict.fromkeys(names, shapes)


def text_profile(rows: int) -> Profile:
    """Shapes of a text transformer."""
    shapes = ((1, 1), (min(_USUAL_ROWS, rows), 2 * TEXT_STEP), (rows, MAX_TOKENS))
    return dict.fromkeys(TEXT_INPUTS, shapes)


def whisper_profile(bands: int, rows: int) -> Profile:
    """Shapes of Whisper's encoder, from the shortest bucket to the whole window."""
    mels = [samples // MEL_HOP for samples in (bucket_length(MIN_UTTERANCE), bucket_length(_USUAL), WHISPER_WINDOW)]
    shortest, usual, longest = mels
    return {WHISPER_INPUT: ((1, bands, shortest), (min(_USUAL_ROWS, rows), bands, usual), (rows, bands, longest))}


def ensemble_profile(encoders: tuple[EncoderSpec, ...], rows: int) -> Profile:
    """Shapes of the ensemble's graph."""
    profile: dict[str, tuple[Size, Size, Size]] = {}
    for encoder in encoders:
        usual, most = (_most_frames(encoder, samples) for samples in (_USUAL, MAX_UTTERANCE))
        fewest = most if encoder.kind == "functionals" else encoder.stack  # which are of one length
        sizes = ((1, fewest), (min(_USUAL_ROWS, rows), usual), (rows, most))
        profile[encoder.name] = (
            (*sizes[0], encoder.dim),
            (*sizes[1], encoder.dim),
            (*sizes[2], encoder.dim),
        )
        profile[mask_of(encoder.name)] = sizes
    return profile


def _most_frames(encoder: EncoderSpec, samples: int) -> int:
    """Frames of a modality of an utterance of `samples`, as the ensemble reads them."""
    if encoder.kind == "functionals":
        return frames_for(FUNCTIONALS_STEPS, encoder.stack)
    if encoder.kind == "text-transformer":
        return frames_for(MAX_TOKENS if samples == MAX_UTTERANCE else 2 * TEXT_STEP, encoder.stack)
    if encoder.kind == "speech-transformer":
        bound = speech_frames_for(samples, encoder.stack)
        return max(bound, frames_for(bound, encoder.stack))
    return frames_for(-(-samples // (MEL_HOP if encoder.kind == "prosody" else WHISPER_HOP)), encoder.stack)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
