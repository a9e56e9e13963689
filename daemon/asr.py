"""The Whisper pass on a batch: one encoder pass gives emotion features and, for final utterances, the words."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from model.audio import MIN_UTTERANCE, Samples, pad_to
from model.features import Frames
from model.transcript import Transcript
from model.whisper import EncodedBatch

_NO_FRAMES: Final = np.zeros((0, 0), np.float32)


class Task(enum.Enum):
    """What is wanted of an utterance.

    FEATURES: the encoder's frames alone, for interim results.
    WORDS: frames and words.
    WORDS_AGAIN: words that looked wrong, over Whisper's whole window: that takes several times as long, so nobody else in the
        batch of the first try waits for it.
    """

    FEATURES = enum.auto()
    WORDS = enum.auto()
    WORDS_AGAIN = enum.auto()


@dataclass(frozen=True, slots=True)
class AsrItem:
    """One utterance to hear."""

    audio: Samples
    language: str | None
    task: Task


@dataclass(frozen=True, slots=True)
class Heard:
    """Encoder frames `float32 [F, D]` of an utterance, none where words were heard again, and its words."""

    frames: Frames
    transcript: Transcript | None


class Ears(Protocol):
    """What `model.whisper.Whisper` is to us."""

    def encode(self, audio: Sequence[Samples]) -> EncodedBatch:
        """One encoder pass over utterances of one bucket."""

    def transcribe_once(self, batch: EncodedBatch, language: str | None = None) -> list[Transcript]:
        """The words of an encoded batch, not all of them to be trusted."""

    def transcribe_again(self, samples: Samples, language: str | None = None) -> Transcript:
        """The words of one utterance over the whole window."""


class AsrModel:
    """`Whisper` as a batcher calls it: all items share a bucket, a language and a task."""

    def __init__(self, whisper: Ears) -> None:
        self._whisper = whisper

    def __call__(self, items: Sequence[AsrItem]) -> list[Heard]:
        """Hears one batch."""
        audio, language, task = [scorable(item.audio) for item in items], items[0].language, items[0].task
        if task is Task.WORDS_AGAIN:
            return [Heard(_NO_FRAMES, self._whisper.transcribe_again(samples, language)) for samples in audio]
        encoded = self._whisper.encode(audio)
        if task is Task.FEATURES:
            return [Heard(frames, None) for frames in encoded.frames]
        transcripts = self._whisper.transcribe_once(encoded, language)
        return [Heard(frames, words) for frames, words in zip(encoded.frames, transcripts, strict=True)]


def scorable(audio: Samples) -> Samples:
    """An utterance's audio, padded with zeros to the shortest that is scored."""
    return pad_to(audio, max(len(audio), MIN_UTTERANCE))
