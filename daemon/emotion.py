"""Features and ensemble on a batch: utterances and words in, posteriors out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from daemon.asr import Heard, scorable
from model.adaptation import FUNCTIONALS, NO_HISTORY, History
from model.audio import Samples
from model.bundle import inputs_of
from model.features import Frames, functionals, prosody_frames
from model.posteriors import Posteriors
from model.runtime import Runtime
from model.spec import WHISPER_KINDS


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
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._adaptation = runtime.adaptation
        self._read = inputs_of(runtime.bundle.spec)
        self._needs_prosody = any(encoder.kind in ("prosody", "functionals") for encoder in self._read)

    def __call__(self, items: Sequence[EmotionItem]) -> list[Scored]:
        """Scores one batch."""
        begun = time.perf_counter()
        frames = self._frames(items)
        histories = self._adapt(items, frames)
        encoded = time.perf_counter()
        posteriors = self._runtime.ensemble.score(frames)
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

    def _frames(self, items: Sequence[EmotionItem]) -> list[dict[str, Frames]]:
        audio = [scorable(item.audio) for item in items]
        rows = [self._computed(samples, item.heard.frames) for samples, item in zip(audio, items, strict=True)]
        for speech in self._runtime.speech:
            for row, frames in zip(rows, speech.encode(audio), strict=True):
                row[speech.spec.name] = frames
        words = _believed(items)
        for text in self._runtime.text:
            for row, frames in zip(rows, text.encode(words), strict=True):
                row[text.spec.name] = frames
        return rows

    def _computed(self, audio: Samples, whisper: Frames) -> dict[str, Frames]:
        """The modalities of one utterance that need no network of their own."""
        row: dict[str, Frames] = {}
        prosody = prosody_frames(audio) if self._needs_prosody else None
        for encoder in self._read:
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
