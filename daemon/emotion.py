"""Features and ensemble on a batch: prosody, functionals and words in, posteriors out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from daemon.asr import Heard, scorable
from model.audio import Samples
from model.features import Frames, functionals, prosody_frames
from model.posteriors import Posteriors
from model.runtime import Runtime


@dataclass(frozen=True, slots=True)
class EmotionItem:
    """One utterance to score."""

    audio: Samples
    heard: Heard


@dataclass(frozen=True, slots=True)
class Scored:
    """Posteriors, and the batch's time in encoders and in the ensemble (seconds)."""

    posteriors: Posteriors
    encoders_s: float
    fusion_s: float


class EmotionModel:
    """Feature encoders and the fused ensemble, as a batcher calls them.

    Words that the recogniser itself does not trust are not read: the text modality is then empty, as in interim results.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._ensemble = runtime.ensemble
        self._text_encoder = runtime.text

    def __call__(self, items: Sequence[EmotionItem]) -> list[Scored]:
        """Scores one batch."""
        begun = time.perf_counter()
        frames = self._frames(items)
        encoded = time.perf_counter()
        posteriors = self._ensemble.score(frames)
        fused = time.perf_counter()
        return [Scored(posterior, encoded - begun, fused - encoded) for posterior in posteriors]

    def _frames(self, items: Sequence[EmotionItem]) -> list[dict[str, Frames]]:
        rows: list[dict[str, Frames]] = []
        for item in items:
            prosody = prosody_frames(scorable(item.audio))
            whisper = item.heard.frames
            rows.append({"whisper": whisper, "prosody": prosody, "functionals": functionals(whisper, prosody)})
        if self._text_encoder is not None:
            for row, words in zip(rows, self._text_encoder.encode(_believed(items)), strict=True):
                row[self._text_encoder.spec.name] = words
        return rows


def _believed(items: Sequence[EmotionItem]) -> list[str]:
    """The words of each item; "" where there are none or the recogniser does not trust them."""
    transcripts = [item.heard.transcript for item in items]
    return [words.text if words is not None and words.trusted else "" for words in transcripts]
