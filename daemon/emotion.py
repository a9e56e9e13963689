"""Features and ensemble on a batch: utterances and words in, posteriors out."""

import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from daemon.asr import Heard, scorable
from model.adaptation import FUNCTIONALS, NO_HISTORY, History
from model.audio import Samples
from model.binding import BoundFrames
from model.features import Frames, functionals, prosody_frames
from model.posteriors import Posteriors
from model.runtime import Runtime
from model.spec import WHISPER_KINDS

_OF_PROSODY: Final = ("prosody", "functionals")
_COMPUTED: Final = (*WHISPER_KINDS, *_OF_PROSODY)


@dataclass(frozen=True, slots=True)
class EmotionItem:
    """One utterance to score, and what its channel sounded like before it."""

    audio: Samples
    heard: Heard
    history: History = NO_HISTORY


@dataclass(frozen=True, slots=True)
class Scored:
    """Posteriors, and the batch's time in encoders and in the ensemble (seconds); see `daemon.messages.Scores`."""

    posteriors: Posteriors
    encoders_s: float
    fusion_s: float
    history: History
    adaptation: float


class EmotionModel:
    """Every encoder but Whisper's, and the ensemble, as a batcher calls them.

    Words that the recogniser itself does not trust are not read: the text modalities are then empty, as in interim results.
    Where encoders and ensemble share a device, frames stay on it between them.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._adaptation = runtime.adaptation
        self._ensembles = (runtime.ensemble, *runtime.fallbacks)
        # A channel's history has no holes where members drop out: its functionals are computed for it alone then.
        always = {FUNCTIONALS} if runtime.adaptation is not None else set()
        self._needed = [always | {encoder.name for encoder in ensemble.reads} for ensemble in self._ensembles]
        self._computed_here = [encoder for encoder in runtime.bundle.spec.encoders if encoder.kind in _COMPUTED]

    def __call__(self, items: Sequence[EmotionItem], fallback: int = 0) -> list[Scored]:
        """Scores one batch.

        Args:
            items: utterances of one bucket.
            fallback: which of the bundle's smaller ensembles scores them, counted from 1; 0 for all members.
        """
        with self._runtime.turn:
            begun = time.perf_counter()
            frames, bound = self._frames(items, self._needed[fallback])
            histories = self._adapt(items, frames)
            encoded = time.perf_counter()
            posteriors = self._ensembles[fallback].score(frames, bound)
            fused = time.perf_counter()
        known = [0.0 if self._adaptation is None else self._adaptation.known(item.history) for item in items]
        return [
            Scored(posterior, encoded - begun, fused - encoded, history, share)
            for posterior, history, share in zip(posteriors, histories, known, strict=True)
        ]

    def _adapt(self, items: Sequence[EmotionItem], frames: Sequence[dict[str, Frames]]) -> list[History]:
        """Hears functionals against their channel, in place; the histories with these utterances in them."""
        if self._adaptation is None:
            return [item.history for item in items]
        histories = []
        for item, row in zip(items, frames, strict=True):
            plain = row[FUNCTIONALS]
            row[FUNCTIONALS] = self._adaptation.adapted(plain, item.history)
            histories.append(self._adaptation.heard(item.history, plain, len(item.audio)))
        return histories

    def _frames(
        self, items: Sequence[EmotionItem], needed: AbstractSet[str]
    ) -> tuple[list[dict[str, Frames]], dict[str, BoundFrames]]:
        """The modalities that are needed, of each utterance, and those of all of them that stay on the device."""
        audio, words = [scorable(item.audio) for item in items], _believed(items)
        rows = [self._computed(samples, item.heard.frames, needed) for samples, item in zip(audio, items, strict=True)]
        bound: dict[str, BoundFrames] = {}
        for speech in (each for each in self._runtime.speech if each.spec.name in needed):
            if self._runtime.shared and speech.binds:
                bound[speech.spec.name] = speech.encode_bound(audio)
                continue
            for row, frames in zip(rows, speech.encode(audio), strict=True):
                row[speech.spec.name] = frames
        for text in (each for each in self._runtime.text if each.spec.name in needed):
            if self._runtime.shared and text.binds and any(words):  # without words there is no pass
                bound[text.spec.name] = text.encode_bound(words)
                continue
            for row, frames in zip(rows, text.encode(words), strict=True):
                row[text.spec.name] = frames
        return rows, bound

    def _computed(self, audio: Samples, whisper: Frames, needed: AbstractSet[str]) -> dict[str, Frames]:
        """The modalities of one utterance that need no network of their own."""
        encoders = [encoder for encoder in self._computed_here if encoder.name in needed]
        row: dict[str, Frames] = {}
        prosody = prosody_frames(audio) if any(encoder.kind in _OF_PROSODY for encoder in encoders) else None
        for encoder in encoders:
            if encoder.kind in WHISPER_KINDS:
                row[encoder.name] = whisper
            elif prosody is not None and encoder.kind == "prosody":
                row[encoder.name] = prosody
            elif prosody is not None and encoder.kind == "functionals":
                row[encoder.name] = functionals(whisper, prosody)
        return row


def _believed(items: Sequence[EmotionItem]) -> list[str]:
    """The words of each item; "" where there are none or the recogniser does not trust them."""
    transcripts = [item.heard.transcript for item in items]
    return [words.text if words is not None and words.trusted else "" for words in transcripts]
