"""Transcripts in the feature cache: the words of a clip that are believed, and how sure the recogniser was of them.

Both lie in folders of their own. A cache that is older than confidence holds words alone: such clips are not transcribed
again, and their confidence is unknown.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from model.spec import EncoderSpec
from model.transcript import Transcript
from train.cache import Cache, encoder_key

Confidence = npt.NDArray[np.float32]

CONFIDENCE: Final = ("log_probability", "no_speech", "trusted")
"""Attributes of a transcript that are kept beside its words, in this order."""


class TranscriptCache:
    """Transcripts by the name of their audio.

    Args:
        folder: of the feature cache.
        whisper: the recogniser, pinned.
        suffix: tells the folders of a degraded copy from those of the recordings.
    """

    def __init__(self, folder: Path, whisper: EncoderSpec, suffix: str = "") -> None:
        key = encoder_key(whisper)
        self._words = Cache(folder / f"{key}-trusted-words{suffix}")
        self._confidence = Cache(folder / f"{key}-words-confidence{suffix}")

    def missing(self, names: Iterable[str]) -> list[str]:
        """The names whose words are not cached yet, in order, whatever is known of their confidence."""
        return self._words.missing(names)

    def add(self, transcripts: Mapping[str, Transcript]) -> None:
        """Writes a shard of confidence, then one of words: words count as done, so a kill leaves none without confidence."""
        self._confidence.add({name: _confidence(transcript) for name, transcript in transcripts.items()})
        self._words.add({name: _believed(transcript) for name, transcript in transcripts.items()})

    def words(self, names: Mapping[str, str]) -> dict[str, str]:
        """Words by clip id; `names` are those of the audio by clip id."""
        raw = self._words.read(list(names.values()))
        return {clip: bytes(raw[name].astype(np.uint8)).decode().strip("\0") for clip, name in names.items()}

    def confidence(self, names: Mapping[str, str]) -> dict[str, Confidence]:
        """`float32 [3]` of `CONFIDENCE` by clip id, NaN where unknown; `names` as for `words`."""
        unknown = dict.fromkeys(self._confidence.missing(names.values()), np.full(len(CONFIDENCE), np.nan))
        found = unknown | self._confidence.read([name for name in names.values() if name not in unknown])
        return {clip: found[name].astype(np.float32) for clip, name in names.items()}


def _confidence(transcript: Transcript) -> Confidence:
    return np.array([getattr(transcript, kind) for kind in CONFIDENCE], np.float32)


def _believed(transcript: Transcript) -> npt.NDArray[np.uint8]:
    """UTF-8; a zero byte stands for no words."""
    text = transcript.text if transcript.trusted else ""  # as the daemon does
    return np.frombuffer(text.encode() or b"\0", np.uint8)
