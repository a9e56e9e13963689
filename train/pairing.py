"""Words for speech whose words carry no emotion.

Acted corpora repeat a dozen neutral sentences, so a model can learn nothing true from their words, and must be kept from
learning false things. Words are learned from texts that carry emotion: at every draw, a clip keeps its own transcript or
is given none, a neutral sentence, one of its own emotion, or one of any emotion. A neutral sentence leaves the target
alone; an emotional one moves it: (1 - w) * voice + w * words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from model.labels import CLASS_INDEX
from train.dataset import TEXT, Examples, HalfFrames

_KINDS = ("own", "none", "neutral", "congruent", "any")


@dataclass(frozen=True, slots=True)
class Pairing:
    """Probabilities of each kind of text, and the weight of emotional words.

    Attributes:
        own: the clip's own transcript.
        none: no text at all (the recogniser heard nothing).
        neutral: a sentence without emotion.
        congruent: a sentence of the clip's dominant class.
        any: a sentence of a random emotional class.
        words_weight: share w of the words in the target when they carry emotion.
    """

    own: float = 1.0
    none: float = 0.0
    neutral: float = 0.0
    congruent: float = 0.0
    any: float = 0.0
    words_weight: float = 0.0

    def __post_init__(self) -> None:
        total = sum(getattr(self, kind) for kind in _KINDS)
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"the pairing probabilities must sum to 1, got {total:g}")


class TextBank:
    """Sentences by the emotion of their words: class name -> frames `float16 [F, d]`."""

    def __init__(self, sentences: Mapping[str, Sequence[HalfFrames]]) -> None:
        self._by_class = {CLASS_INDEX[name]: list(rows) for name, rows in sentences.items() if rows}
        self._emotional = sorted(index for index in self._by_class if index != CLASS_INDEX["neutral"])

    def pair(self, examples: Examples, pairing: Pairing, rng: np.random.Generator) -> Examples:
        """Draws a text for every example and moves the targets accordingly."""
        own = examples.frames[TEXT]
        texts: list[HalfFrames] = []
        targets = examples.targets.copy()
        kinds = rng.choice(len(_KINDS), len(examples), p=[getattr(pairing, kind) for kind in _KINDS])
        for row, (kind, voice) in enumerate(zip(kinds, examples.dominant, strict=True)):
            words = self._class_of(_KINDS[kind], int(voice), rng)
            if words is None:
                texts.append(own[row] if _KINDS[kind] != "none" else own[row][:0])
                continue
            sentences = self._by_class[words]
            texts.append(sentences[rng.integers(len(sentences))])
            if words != CLASS_INDEX["neutral"]:
                targets[row] *= 1.0 - pairing.words_weight
                targets[row, words] += pairing.words_weight
        return replace(examples, frames={**examples.frames, TEXT: texts}, targets=targets)

    def _class_of(self, kind: str, voice: int, rng: np.random.Generator) -> int | None:
        """Class of the sentence to draw; None keeps the transcript."""
        neutral = CLASS_INDEX["neutral"]
        if kind == "neutral" and neutral in self._by_class:
            return neutral
        if kind == "congruent" and voice in self._by_class:
            return voice
        if kind == "any" and self._emotional:
            return self._emotional[rng.integers(len(self._emotional))]
        return None
