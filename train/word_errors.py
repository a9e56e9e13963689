"""Misheard words: what a recogniser might have made of a clip's own transcript.

Training reads the transcripts of good recordings; on a bad line, words are lost and others are heard. At every draw a clip
keeps its transcript, or is given one of its misheard variants, or no words at all. The variants of a transcript are fixed,
so their features are extracted once like any other text's.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from train.augment_config import WordErrorsConfig
from train.dataset import Examples, HalfFrames
from train.features import Extraction, read_transcripts
from train.manifest import Clip


def mishear(text: str, vocabulary: Sequence[str], config: WordErrorsConfig, number: int) -> str:
    """One misheard variant of a transcript, decided by the transcript and its number alone.

    Args:
        text: the transcript.
        vocabulary: words that may be heard in the place of others.
        config: how often words are lost and exchanged.
        number: 0, 1, ... of the variant.
    """
    rng = np.random.default_rng([number, int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)])
    heard = []
    for word in text.split():
        chance = rng.random()
        if chance < config.deletion:
            continue
        is_exchanged = chance < config.deletion + config.substitution and len(vocabulary) > 0
        heard.append(vocabulary[int(rng.integers(len(vocabulary)))] if is_exchanged else word)
    return " ".join(heard)


@dataclass(frozen=True, slots=True)
class Misheard:
    """Frames of misheard variants, for every modality that reads text.

    Attributes:
        frames: modality -> clip id -> frames `float16 [F, d]` of each variant.
        config: how often they are read.
    """

    frames: Mapping[str, Mapping[str, Sequence[HalfFrames]]]
    config: WordErrorsConfig

    def draw(self, examples: Examples, rng: np.random.Generator) -> Examples:
        """Each example with its own words, with misheard ones, or without; the same for all modalities.

        One that no variants were made of, as of audio without labels, has its own words in the place of misheard ones.
        """
        chances, variants = rng.random(len(examples)), rng.integers(self.config.variants, size=len(examples))
        texts = {}
        for name, misheard in self.frames.items():
            rows = list(examples.frames[name])
            for row, (chance, variant) in enumerate(zip(chances, variants, strict=True)):
                if chance < self.config.empty:
                    rows[row] = rows[row][:0]
                elif chance < self.config.empty + self.config.errors:
                    variants_of = misheard.get(examples.ids[row])
                    rows[row] = variants_of[variant] if variants_of else rows[row]
            texts[name] = rows
        return replace(examples, frames={**examples.frames, **texts})


def misheard(extraction: Extraction, clips: Sequence[Clip]) -> Misheard | None:
    """Variants of the transcripts of clips whose features are extracted; None where the recipe has no word errors."""
    config = extraction.augment.words
    if not config.is_on:
        return None
    transcripts = read_transcripts(clips, extraction.encoders["whisper"], extraction.cache)
    vocabulary = sorted({word for text in transcripts.values() for word in text.split()})
    numbers = range(config.variants) if config.errors else range(0)
    variants = {
        (text, number): mishear(text, vocabulary, config, number)
        for text in set(transcripts.values())
        for number in numbers
    }
    frames = {}
    for name, encoder in extraction.encoders.items():
        if encoder.kind == "text-transformer":
            of_text = extraction.words({heard: heard for heard in variants.values()}, name) if variants else {}
            frames[name] = {
                clip: [of_text[variants[text, number]] for number in numbers] for clip, text in transcripts.items()
            }
    return Misheard(frames, config)
