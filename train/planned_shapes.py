"""Shapes that a recipe's networks would be given, from the length of an utterance alone.

Shapes: B = batch, F = frames, d = width of a frame.
"""

from collections.abc import Mapping
from typing import Final

from model.audio import MEL_HOP, SAMPLE_RATE_HZ, WHISPER_HOP
from model.features import FUNCTIONALS_STEPS
from model.spec import EncoderSpec

TOKENS_PER_S: Final = 3.5
"""Tokens of a second of speech: two and a half words, somewhat more pieces than words."""


def frames_of(encoder: EncoderSpec, length_s: float) -> float:
    """Frames of an utterance of `length_s` seconds."""
    if encoder.kind == "functionals":
        return FUNCTIONALS_STEPS
    if encoder.kind == "prosody":
        return length_s * SAMPLE_RATE_HZ / MEL_HOP
    if encoder.kind == "text-transformer":
        return length_s * TOKENS_PER_S
    return length_s * SAMPLE_RATE_HZ / WHISPER_HOP  # the rate of wav2vec 2.0's kin too


def shapes(encoders: Mapping[str, EncoderSpec], batch: int, length_s: float) -> dict[str, tuple[int, int, int]]:
    """`[B, F, d]` of every modality, for utterances of one length."""
    found = {}
    for name, encoder in encoders.items():
        frames = max(1, round(frames_of(encoder, length_s)))
        found[name] = (batch, -(-frames // encoder.stack) * encoder.stack, encoder.dim)
    return found
