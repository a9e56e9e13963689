"""Cuts a labelled clip as live audio is cut: the same segmenter, with the rules that the daemon has by default."""

from typing import Final

import numpy as np
import numpy.typing as npt

from model.audio import MAX_UTTERANCE, MIN_UTTERANCE, VAD_WINDOW, Samples, pad_to
from model.segmenter import Cut, Endpointing, Segmenter
from model.vad import speech_probabilities

RULES: Final = Endpointing()
"""When speech begins and ends in a clip."""


def cut_clip(samples: Samples) -> Samples:
    """A clip `float32 [T]` as the daemon would cut it, `float32 [MIN_UTTERANCE..MAX_UTTERANCE]`; see `cut_by`."""
    return cut_by(samples, speech_probabilities(samples))


def cut_by(samples: Samples, probabilities: npt.NDArray[np.float32]) -> Samples:
    """The utterance of a clip `float32 [T]`, given its speech probabilities `float32 [ceil(T / 512)]`.

    A clip with a pause that would end an utterance live is still one: it spans its first to its last utterance, at most
    20 s from its start. A clip in which no speech begins is kept whole, at most its first 20 s.

    Raises:
        ValueError: if there is not one probability, in 0..1, for every whole or partly filled window.
    """
    windows = -(-len(samples) // VAD_WINDOW)
    if len(probabilities) != windows:
        raise ValueError(f"{len(samples)} samples have {windows} windows, got {len(probabilities)} probabilities")
    segmenter = Segmenter(RULES)
    marks = [mark for probability in probabilities for mark in segmenter.step(float(probability))]
    cuts = [mark for mark in [*marks, *segmenter.finish()] if isinstance(mark, Cut)]
    if cuts:
        # A stream that ends inside a window fills it with silence, and its last utterance may hold that silence.
        samples = pad_to(samples, windows * VAD_WINDOW)[cuts[0].start : cuts[-1].end]
    samples = samples[:MAX_UTTERANCE]
    return pad_to(samples, max(len(samples), MIN_UTTERANCE))
