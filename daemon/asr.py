"""The Whisper pass on a batch: one encoder pass gives emotion features and, for final utterances, the words."""

from collections.abc import Sequence
from dataclasses import dataclass

from model.audio import MIN_UTTERANCE, Samples, pad_to
from model.features import Frames
from model.transcript import Transcript
from model.whisper import Whisper


@dataclass(frozen=True, slots=True)
class AsrItem:
    """One utterance to hear. `words` is false for interim results, which need the features alone."""

    audio: Samples
    language: str | None
    words: bool


@dataclass(frozen=True, slots=True)
class Heard:
    """Encoder frames `float32 [F, D]` of an utterance, and its words."""

    frames: Frames
    transcript: Transcript | None


class AsrModel:
    """`Whisper` as a batcher calls it: all items share a bucket, a language and `words`."""

    def __init__(self, whisper: Whisper) -> None:
        self._whisper = whisper

    def __call__(self, items: Sequence[AsrItem]) -> list[Heard]:
        """Hears one batch."""
        encoded = self._whisper.encode([scorable(item.audio) for item in items])
        if not items[0].words:
            return [Heard(frames, None) for frames in encoded.frames]
        transcripts = self._whisper.transcribe(encoded, items[0].language)
        return [Heard(frames, words) for frames, words in zip(encoded.frames, transcripts, strict=True)]


def scorable(audio: Samples) -> Samples:
    """An utterance's audio, padded with zeros to the shortest that is scored."""
    return pad_to(audio, max(len(audio), MIN_UTTERANCE))
