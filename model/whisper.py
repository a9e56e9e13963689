"""Whisper: one encoder pass gives the emotion features and the transcript, which CTranslate2 decodes.

Used by feature extraction in `train` and by the daemon, so that both see the same frames and the same words.

Shapes: B = batch, T = samples, M = mel bands, F = encoder frames (20 ms), D = encoder width, S = hidden states taken.

Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", arXiv:2212.04356; faster-whisper.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import ctranslate2
import numpy as np
import numpy.typing as npt
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer

from model.audio import (
    BUCKET_MARGIN,
    SAMPLE_RATE_HZ,
    WHISPER_HOP,
    WHISPER_WINDOW,
    Samples,
    bucket_length,
    frame_count,
    pad_to,
)
from model.transcript import Transcript

MAX_COMPRESSION_RATIO: Final = 2.4
"""Text that compresses better than this repeats itself (Whisper's own threshold)."""
MIN_LOG_PROBABILITY: Final = -1.0
"""Mean token log-probability below which a decode has failed (Whisper's own threshold)."""
MAX_NO_SPEECH: Final = 0.6
"""No-speech probability above which words are not believed when the decode is poor too (Whisper's own threshold)."""
_TOKENS_PER_S: Final = 6
_TOKENS_EXTRA: Final = 12
"""Fast speech holds about five tokens a second: a decode that wants more has run away."""
_END_TOLERANCE_S: Final = 0.5
"""A closing timestamp this near the end of the speech ends the transcript: what follows fills the silence behind it."""
_TIMESTAMP_S: Final = 0.02
_REPEATED_WORDS: Final = 3


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Encoder output of utterances of one bucket.

    Attributes:
        audio: the utterances, each `float32 [T]`.
        frames: per utterance `float32 [F, S * D]`, trimmed to its speech: F = ceil(T / 320).
        storage: the untrimmed last state `[B, F_bucket, D]`, which the decoder reads.
    """

    audio: tuple[Samples, ...]
    frames: tuple[npt.NDArray[np.float32], ...]
    storage: ctranslate2.StorageView


class HiddenStates(Protocol):
    """An encoder that gives more than its last hidden state."""

    def __call__(self, mels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """`float32 [B, M, 2 F]` -> `float32 [B, F, S, D]`, the encoder's last state last."""
        ...


class Whisper:
    """A Whisper model on one device.

    Args:
        path: folder of a CTranslate2 conversion.
        device: "cpu" or "cuda".
        compute_type: CTranslate2's name of the arithmetic, for instance "int8" or "float16".
        threads: threads of one call on a CPU; 0 leaves it to CTranslate2.
        encoder: encodes in CTranslate2's place, with the same weights; None takes CTranslate2's last state alone.

    Raises:
        RuntimeError: if the folder holds no such model or the device cannot run it.
    """

    def __init__(
        self,
        path: Path | str,
        device: str = "cpu",
        compute_type: str = "int8",
        threads: int = 0,
        encoder: HiddenStates | None = None,
    ) -> None:
        self._model = WhisperModel(str(path), device=device, compute_type=compute_type, cpu_threads=threads)
        self._encoder = encoder
        self.multilingual = bool(self._model.model.is_multilingual)
        self._tokenizers: dict[str, Tokenizer] = {}

    @property
    def languages(self) -> tuple[str, ...]:
        """ISO 639-1 codes of the languages that the model knows."""
        return tuple(self._model.supported_languages)

    def encode(self, audio: Sequence[Samples]) -> EncodedBatch:
        """One encoder pass over utterances that share a bucket (`model.audio.bucket_length`).

        Raises:
            ValueError: if there is no utterance, or two have different buckets.
        """
        lengths = {bucket_length(len(samples)) for samples in audio}
        if len(lengths) != 1:
            raise ValueError(f"a batch holds utterances of exactly one bucket, got buckets {sorted(lengths)}")
        frames, storage = self._encode_padded(audio, lengths.pop())
        trimmed = tuple(
            frames[row, : frame_count(len(samples), WHISPER_HOP)].astype(np.float32)
            for row, samples in enumerate(audio)
        )
        return EncodedBatch(tuple(audio), trimmed, storage)

    def transcribe(self, batch: EncodedBatch, language: str | None = None) -> list[Transcript]:
        """The words of an encoded batch, those that look wrong heard again.

        Args:
            batch: what `encode` returned.
            language: ISO 639-1 code; None detects it where the model is multilingual.

        Raises:
            ValueError: if the model does not know the language.
        """
        return [
            transcript if transcript.trusted else self.transcribe_again(samples, language)
            for transcript, samples in zip(self.transcribe_once(batch, language), batch.audio, strict=True)
        ]

    def transcribe_once(self, batch: EncodedBatch, language: str | None = None) -> list[Transcript]:
        """The words of an encoded batch, decoded greedily; those that are not trusted are for `transcribe_again`.

        Args:
            batch: what `encode` returned.
            language: ISO 639-1 code; None detects it where the model is multilingual.

        Raises:
            ValueError: if the model does not know the language.
        """
        longest = bucket_length(len(batch.audio[0])) - BUCKET_MARGIN  # of the bucket, not of the neighbours
        return self._decode(batch.storage, batch.audio, language, longest)

    def transcribe_again(self, samples: Samples, language: str | None = None) -> Transcript:
        """The words of one utterance over the full 30 s window, which serves the words only, never the emotion features.

        Args:
            samples: the utterance.
            language: as for `transcribe_once`.

        Raises:
            ValueError: if the model does not know the language.
        """
        _, storage = self._encode_padded([samples], WHISPER_WINDOW)
        return self._decode(storage, [samples], language, len(samples))[0]

    def _encode_padded(
        self, audio: Sequence[Samples], length: int
    ) -> tuple[npt.NDArray[np.float32], ctranslate2.StorageView]:
        """Frames `[B, F, S * D]` and what the decoder reads."""
        extract = self._model.feature_extractor
        mels = np.stack([extract(pad_to(samples, length), padding=0) for samples in audio]).astype(np.float32)
        if self._encoder is None:
            storage = self._model.model.encode(ctranslate2.StorageView.from_array(mels), to_cpu=True)
            return np.array(storage), storage
        states = self._encoder(mels)
        last = np.ascontiguousarray(states[:, :, -1])
        return states.reshape(*last.shape[:2], -1), ctranslate2.StorageView.from_array(last)

    def _decode(
        self, storage: ctranslate2.StorageView, audio: Sequence[Samples], language: str | None, longest: int
    ) -> list[Transcript]:
        languages = self._languages(storage, len(audio), language)
        tokenizers = [self._tokenizer(code) for code in languages]
        budget = _TOKENS_EXTRA + round(_TOKENS_PER_S * longest / SAMPLE_RATE_HZ)
        results = self._model.model.generate(
            storage,
            [list(tokenizer.sot_sequence) for tokenizer in tokenizers],  # with timestamps: they end the decode in time
            beam_size=1,
            max_length=2 * budget,  # CTranslate2 halves it: the other half is Whisper's room for a prompt
            return_scores=True,
            return_no_speech_prob=True,
        )
        whole_window = int(storage.shape[1]) * WHISPER_HOP >= WHISPER_WINDOW
        return [
            _transcript(tokenizer, result, len(samples) / SAMPLE_RATE_HZ, budget, whole_window)
            for tokenizer, result, samples in zip(tokenizers, results, audio, strict=True)
        ]

    def _languages(self, storage: ctranslate2.StorageView, count: int, language: str | None) -> list[str]:
        known = self._model.supported_languages
        if language is not None:
            if language not in known:
                names = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
                raise ValueError(f"this Whisper model does not know the language {language!r}; it knows {names}")
            return [language] * count
        if not self.multilingual:
            return ["en"] * count
        return [ranked[0][0].strip("<|>") for ranked in self._model.model.detect_language(storage)]

    def _tokenizer(self, language: str) -> Tokenizer:
        if language not in self._tokenizers:
            self._tokenizers[language] = Tokenizer(
                self._model.hf_tokenizer, self.multilingual, task="transcribe", language=language
            )
        return self._tokenizers[language]


def _transcript(
    tokenizer: Tokenizer,
    result: ctranslate2.models.WhisperGenerationResult,
    duration_s: float,
    budget: int,
    whole_window: bool,
) -> Transcript:
    ids = result.sequences_ids[0]
    words, ended = _words_until_end(ids, tokenizer.timestamp_begin, duration_s)
    text = tokenizer.decode(words).strip()
    log_probability = float(result.scores[0]) * len(ids) / (len(ids) + 1)
    no_speech = float(result.no_speech_prob)
    silent = no_speech > MAX_NO_SPEECH and log_probability < MIN_LOG_PROBABILITY
    plausible = (
        (ended or len(ids) < budget)
        and log_probability >= MIN_LOG_PROBABILITY
        and _compression_ratio(text) <= MAX_COMPRESSION_RATIO
        and (whole_window or not _repeats(text))  # people do repeat themselves: the whole window decides
    )
    return Transcript("" if silent else text, tokenizer.language_code, log_probability, no_speech, plausible or silent)


def _words_until_end(ids: Sequence[int], timestamp_begin: int, duration_s: float) -> tuple[list[int], bool]:
    """Text tokens up to the timestamp that closes the speech, and whether there was one."""
    words: list[int] = []
    for position, token in enumerate(ids):
        if token < timestamp_begin:
            words.append(token)
        elif position > 0 and (token - timestamp_begin) * _TIMESTAMP_S >= duration_s - _END_TOLERANCE_S:
            return words, True
    return words, False


def _repeats(text: str) -> bool:
    words = text.lower().split()
    runs = [tuple(words[start : start + _REPEATED_WORDS]) for start in range(len(words) - _REPEATED_WORDS + 1)]
    return len(set(runs)) < len(runs)


def _compression_ratio(text: str) -> float:
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw)) if raw else 0.0
