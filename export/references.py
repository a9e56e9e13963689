"""What a bundle's encoders have to give: their networks in torch, with the inputs that show every difference.

A reference holds its network in memory, and the large ones take gigabytes: make one at a time (`reference_of`).

Shapes: B = batch, T = samples or tokens, F = frames, M = mel bands, S = hidden states taken, D = encoder width, d = S * D.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch

from export.encoders import export_speech_encoder, export_text_encoder, export_whisper_encoder
from export.errors import ExportError
from model.audio import MAX_UTTERANCE, MIN_UTTERANCE, WHISPER_HOP, Samples, bucket_length
from model.bundle import (
    SPEECH_AUDIO,
    SPEECH_AUDIO_MASK,
    SPEECH_OUTPUT,
    SPEECH_OUTPUT_MASK,
    TEXT_OUTPUT,
    WHISPER_INPUT,
    WHISPER_OUTPUT,
)
from model.features import Frames, collate, standardise
from model.network.encoders import TextEncoder, load_text_encoder
from model.network.speech_encoder import SpeechEncoder, load_speech_encoder, wants_standardised
from model.network.whisper_encoder import WhisperEncoder, load_whisper_encoder
from model.onnx_encoders import SPEECH_STEP
from model.sources import resolve_encoder
from model.spec import EncoderSpec
from model.text import MAX_TOKENS, TextTokenizer, word_frames

Item = TypeVar("Item")
Mels = npt.NDArray[np.float32]
Feed = dict[str, npt.NDArray[Any]]

TEXTS: Final = (
    "",
    "no",
    "The airplane is almost full.",
    "I am so sorry for your loss, this is heartbreaking.",
    "   ",
    "What the hell are you doing? I have been waiting for three weeks and nobody answers my calls!",
    " ".join(["and then they laughed"] * 60),  # longer than the encoder takes: cut
)
_HOP: Final = 320
"""Samples between two frames of a speech transformer."""
_GARBAGE: Final = 9.0
"""What extra samples hold: it must not matter."""


class Reference(Protocol[Item]):
    """One encoder: what its graph is given, and what it has to give back.

    Attributes:
        name: the encoder's.
        examples: the shortest legal input, the frame and bucket edges and one off them, the longest.
        masked: whether inputs of different length share a pass; if not, equal ones do, and `extra` has no effect.
    """

    name: str
    examples: tuple[Item, ...]
    masked: bool

    def graph(self) -> onnx.ModelProto:
        """The network as a float32 graph."""
        ...

    def expected(self, items: Sequence[Item]) -> list[Frames]:
        """What the network gives, `float32 [F, d]`, each item alone and without padding."""
        ...

    def found(self, session: onnxruntime.InferenceSession, items: Sequence[Item], extra: int = 0) -> list[Frames]:
        """What the graph gives for items that share a pass, `float32 [F, d]`.

        Args:
            session: of the graph in whichever precision.
            items: of any lengths.
            extra: samples or tokens of padding beyond the longest item, with values that must not matter.
        """
        ...


def reference_of(encoder: EncoderSpec) -> Reference[Any]:
    """The reference of an encoder that has a graph (`model.onnx_encoders.with_graphs`), from its checkpoint's sources.

    Raises:
        SourceError: if no source has its weights.
        ExportError: if they are another kind of model or of another width, or encoders of this kind have no graph.
    """
    folder = resolve_encoder(encoder)
    try:
        reference, dim = _loaded(encoder, folder)
    except (OSError, ValueError) as error:
        raise ExportError(f"encoder {encoder.name!r}: {error}") from error
    if dim != encoder.dim:
        raise ExportError(f"encoder {encoder.name!r}: its weights give frames of width {dim}, not dim = {encoder.dim}")
    return reference


def _loaded(encoder: EncoderSpec, folder: Path) -> tuple[Reference[Any], int]:
    if encoder.kind == "speech-transformer":
        speech = load_speech_encoder(folder, "eager")
        return SpeechReference(encoder.name, speech, wants_standardised(folder)), speech.dim
    if encoder.kind == "text-transformer":
        text = load_text_encoder(folder)
        return TextReference(encoder.name, text, TextTokenizer(folder / "tokenizer.json")), text.dim
    if encoder.kind == "whisper-onnx":
        whisper = load_whisper_encoder(encoder)
        return WhisperReference(encoder.name, whisper), whisper.dim * len(whisper.states)
    raise ValueError(f"a {encoder.kind} has no graph of its own")


class SpeechReference:
    """A speech transformer; items are utterances `float32 [T]`, standardised here where it was trained so."""

    def __init__(self, name: str, network: SpeechEncoder, standardised: bool) -> None:
        self.name, self.network, self.standardised = name, network, standardised
        self.masked = not network.needs_equal_lengths
        shortest = network.receptive_field
        edges = (shortest, shortest + _HOP - 1, shortest + _HOP, MIN_UTTERANCE, SPEECH_STEP, SPEECH_STEP + 1)
        rng = np.random.default_rng(0)
        self.examples: tuple[Samples, ...] = tuple(
            (0.02 + 0.1 * rng.standard_normal(length)).astype(np.float32) for length in (*edges, MAX_UTTERANCE)
        )

    def graph(self) -> onnx.ModelProto:
        """As `Reference`."""
        return export_speech_encoder(self.network)

    @torch.no_grad()
    def expected(self, items: Sequence[Samples]) -> list[Frames]:
        """As `Reference`."""
        found = []
        for wave in map(self._prepared, items):
            hidden, _ = self.network(torch.from_numpy(wave)[None], torch.ones(1, len(wave), dtype=torch.bool))
            found.append(hidden[0].numpy())
        return found

    def found(self, session: onnxruntime.InferenceSession, items: Sequence[Samples], extra: int = 0) -> list[Frames]:
        """As `Reference`."""
        if not self.masked:
            return _by_shape(items, lambda same: self._run(session, same, 0))
        return self._run(session, items, extra)

    def _prepared(self, samples: Samples) -> Samples:
        return standardise(samples) if self.standardised else samples

    def _run(self, session: onnxruntime.InferenceSession, items: Sequence[Samples], extra: int) -> list[Frames]:
        audio, mask = collate([self._prepared(samples)[:, None] for samples in items], 1)
        mask = np.pad(mask, ((0, 0), (0, extra)))
        padded = np.pad(audio[:, :, 0], ((0, 0), (0, extra)))
        feed: Feed = {SPEECH_AUDIO: np.where(mask, padded, np.float32(_GARBAGE))}
        if self.masked:
            feed[SPEECH_AUDIO_MASK] = mask
        hidden, kept = session.run([SPEECH_OUTPUT, SPEECH_OUTPUT_MASK], feed)
        return [rows[keep] for rows, keep in zip(hidden, kept, strict=True)]


class TextReference:
    """A text transformer; items are texts."""

    examples = TEXTS
    masked = True

    def __init__(self, name: str, network: TextEncoder, tokenizer: TextTokenizer) -> None:
        self.name, self.network, self._tokenizer = name, network, tokenizer

    def graph(self) -> onnx.ModelProto:
        """As `Reference`."""
        return export_text_encoder(self.network)

    @torch.no_grad()
    def expected(self, items: Sequence[str]) -> list[Frames]:
        """As `Reference`."""
        frames = []
        for text in items:
            batch = self._tokenizer.encode([text])
            hidden = self.network(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask))
            frames += word_frames(hidden.numpy(), batch)
        return frames

    def found(self, session: onnxruntime.InferenceSession, items: Sequence[str], extra: int = 0) -> list[Frames]:
        """As `Reference`."""
        batch = self._tokenizer.encode(items)
        beyond = ((0, 0), (0, min(extra, MAX_TOKENS - batch.ids.shape[1])))
        mask = np.pad(batch.mask, beyond)
        ids = np.where(mask, np.pad(batch.ids, beyond), 1)
        (hidden,) = session.run([TEXT_OUTPUT], {"ids": ids, "mask": mask})
        return word_frames(hidden[:, : batch.ids.shape[1]], batch)


class WhisperReference:
    """A Whisper encoder; items are mel frames `float32 [M, 2 F]`."""

    masked = False

    def __init__(self, name: str, network: WhisperEncoder) -> None:
        self.name, self.network = name, network
        bucket = bucket_length(MIN_UTTERANCE) // WHISPER_HOP
        lengths = [n for n in (1, bucket - 1, bucket, bucket + 1, network.max_frames) if n <= network.max_frames]
        rng = np.random.default_rng(0)
        self.examples: tuple[Mels, ...] = tuple(
            rng.standard_normal((network.bands, 2 * length)).astype(np.float32) for length in lengths for _ in range(2)
        )

    def graph(self) -> onnx.ModelProto:
        """As `Reference`."""
        return export_whisper_encoder(self.network)

    @torch.no_grad()
    def expected(self, items: Sequence[Mels]) -> list[Frames]:
        """As `Reference`."""
        return [self.network(torch.from_numpy(mels)[None])[0].flatten(1).numpy() for mels in items]

    def found(self, session: onnxruntime.InferenceSession, items: Sequence[Mels], extra: int = 0) -> list[Frames]:
        """As `Reference`."""
        return _by_shape(items, lambda same: _run_whisper(session, same))


def _run_whisper(session: onnxruntime.InferenceSession, items: Sequence[Mels]) -> list[Frames]:
    (states,) = session.run([WHISPER_OUTPUT], {WHISPER_INPUT: np.stack(items)})
    return [rows.reshape(len(rows), -1) for rows in states]


def _by_shape(
    items: Sequence[npt.NDArray[np.float32]], run: Callable[[Sequence[npt.NDArray[np.float32]]], list[Frames]]
) -> list[Frames]:
    """Runs items of one shape together; the frames come in the items' order."""
    frames: dict[int, Frames] = {}
    for shape in dict.fromkeys(item.shape for item in items):
        rows = [row for row, item in enumerate(items) if item.shape == shape]
        frames |= zip(rows, run([items[row] for row in rows]), strict=True)
    return [frames[row] for row in range(len(items))]


def relative(expected: Sequence[Frames], found: Sequence[Frames]) -> float:
    """Largest relative L2 difference of an item's frames; infinite where their shapes differ, 0 where both are empty."""
    worst = [0.0]
    for right, frames in zip(expected, found, strict=True):
        if right.shape != frames.shape:
            return float("inf")
        worst.append(float(np.linalg.norm(frames - right)) / max(float(np.linalg.norm(right)), 1e-12))
    return float(np.max(worst))  # NaN, where there is one
