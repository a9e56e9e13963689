"""The encoders that travel inside a bundle, on ONNX Runtime: waveforms, words and mel frames to hidden states.

No result depends on its neighbours in a batch or on padding.

Shapes: B = batch, T = samples or tokens, M = mel bands, F = frames, S = hidden states taken, D = encoder width, d = S * D.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from model.audio import SAMPLE_RATE_HZ, Samples
from model.bundle import (
    FIXED,
    SPEECH_AUDIO,
    SPEECH_AUDIO_MASK,
    SPEECH_OUTPUT,
    SPEECH_OUTPUT_MASK,
    TEXT_INPUTS,
    TEXT_OUTPUT,
    WHISPER_INPUT,
    WHISPER_OUTPUT,
    Bundle,
    BundleError,
    graph_file,
    inputs_of,
    tokenizer_file,
)
from model.features import Frames, collate, standardise
from model.onnx_session import CPU, load_graph
from model.sources import SourceError, resolve_encoder
from model.spec import EncoderSpec, EnsembleSpec
from model.text import TextTokenizer, word_frames

SHORTEST_SPEECH: Final = 400
"""Samples that one frame of a speech transformer hears (25 ms, in every published checkpoint): the shortest utterance."""
SPEECH_STEP: Final = SAMPLE_RATE_HZ // 2
"""Samples that a batch of a speech transformer is padded to a multiple of: forty shapes up to 20 s, a tenth of padding."""


class OnnxSpeechEncoder:
    """A speech transformer of the bundle's: utterances to frames.

    Args:
        bundle: where it is.
        spec: an encoder of kind "speech-transformer".
        threads: threads of one call.
        providers: as for `make_session`.

    Raises:
        BundleError: if the bundle does not hold it, or its graph is not what the manifest says.
        ProviderError: as for `make_session`.
    """

    def __init__(self, bundle: Bundle, spec: EncoderSpec, threads: int, providers: Sequence[str] = (CPU,)) -> None:
        self.spec = spec
        names = (SPEECH_AUDIO,) if spec.equal_lengths else (SPEECH_AUDIO, SPEECH_AUDIO_MASK)
        outputs = {SPEECH_OUTPUT: (None, None, spec.dim), SPEECH_OUTPUT_MASK: (None, None)}
        try:
            path = resolve_encoder(spec, bundle.path)
        except SourceError as error:
            raise BundleError(f"{bundle.id}: the speech encoder {spec.name!r} cannot be loaded: {error}") from error
        self._session = load_graph(path, threads, providers, dict.fromkeys(names, (None, None)), outputs)

    def encode(self, audio: Sequence[Samples]) -> list[Frames]:
        """Frames `float32 [F, d]` of each utterance `float32 [T]`, standardised where the encoder was trained so.

        Utterances share one pass, but for an encoder that would hear padding: there only those of one length do.

        Raises:
            ValueError: if an utterance is shorter than one frame.
        """
        if short := [len(samples) for samples in audio if len(samples) < SHORTEST_SPEECH]:
            raise ValueError(
                f"an utterance has at least the {SHORTEST_SPEECH} samples that one frame hears, got {min(short)}"
            )
        waves = [standardise(samples) if self.spec.standardised else samples for samples in audio]
        if not self.spec.equal_lengths:
            return self._run(waves, SPEECH_STEP) if waves else []
        frames: dict[int, Frames] = {}
        for length in {len(wave) for wave in waves}:
            rows = [row for row, wave in enumerate(waves) if len(wave) == length]
            frames |= zip(rows, self._run([waves[row] for row in rows], 1), strict=True)
        return [frames[row] for row in range(len(waves))]

    def _run(self, waves: Sequence[Samples], multiple: int) -> list[Frames]:
        padded, mask = collate([wave[:, None] for wave in waves], multiple)
        feed: dict[str, npt.NDArray[np.generic]] = {SPEECH_AUDIO: padded[:, :, 0]}
        if not self.spec.equal_lengths:
            feed[SPEECH_AUDIO_MASK] = mask
        hidden, kept = self._session.run([SPEECH_OUTPUT, SPEECH_OUTPUT_MASK], feed)
        return [np.ascontiguousarray(rows[keep], np.float32) for rows, keep in zip(hidden, kept, strict=True)]


class OnnxTextEncoder:
    """A text encoder of the bundle's: texts to frames.

    Args:
        bundle: where it is.
        spec: an encoder of kind "text-transformer".
        threads: threads of one call.
        providers: as for `make_session`.

    Raises:
        BundleError: if the bundle does not hold it, or its graph is not what the manifest says.
        ProviderError: as for `make_session`.
    """

    def __init__(self, bundle: Bundle, spec: EncoderSpec, threads: int, providers: Sequence[str] = (CPU,)) -> None:
        self.spec = spec
        try:
            path = resolve_encoder(spec, bundle.path)
            self._tokenizer = TextTokenizer(bundle.path / tokenizer_file(spec.name))
        except (SourceError, OSError, ValueError) as error:
            raise BundleError(f"{bundle.id}: the text encoder {spec.name!r} cannot be loaded: {error}") from error
        outputs = {TEXT_OUTPUT: (None, None, spec.dim)}
        self._session = load_graph(path, threads, providers, TEXT_INPUTS, outputs)

    def encode(self, texts: Sequence[str]) -> list[Frames]:
        """Frames `float32 [F, d]` of each text, special tokens left out; F is 0 for an empty or blank one.

        A text's frames do not depend on its neighbours: padding is masked and the arithmetic is float32.
        """
        batch = self._tokenizer.encode(texts)
        if not batch.keep.any():
            return [np.zeros((0, self.spec.dim), np.float32) for _ in texts]
        (hidden,) = self._session.run([TEXT_OUTPUT], {"ids": batch.ids, "mask": batch.mask})
        return word_frames(np.asarray(hidden, np.float32), batch)


class OnnxHiddenStates:
    """The bundle's Whisper encoder: implements `model.whisper.HiddenStates`.

    Args:
        bundle: a bundle with an encoder of kind "whisper-onnx".
        threads: threads of one call.
        providers: as for `make_session`.

    Raises:
        BundleError: if the bundle has no such encoder, or its graph is not what the manifest says.
        ProviderError: as for `make_session`.
    """

    def __init__(self, bundle: Bundle, threads: int, providers: Sequence[str] = (CPU,)) -> None:
        spec = bundle.spec.whisper
        if spec is None or not spec.states:
            raise BundleError(f"{bundle.id} has no Whisper encoder of its own")
        outputs = {WHISPER_OUTPUT: (None, None, len(spec.states), spec.dim // len(spec.states))}
        path = bundle.path / graph_file(spec)
        self._session = load_graph(path, threads, providers, {WHISPER_INPUT: (None, FIXED, None)}, outputs)
        self._bands = int(self._session.get_inputs()[0].shape[1])

    def __call__(self, mels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """`float32 [B, M, 2 F]` -> `float32 [B, F, S, D]`.

        An utterance's states do not depend on its neighbours: all have one length, and the arithmetic is float32.

        Raises:
            ValueError: if the mel frames have another number of bands than the graph reads.
        """
        if mels.shape[1] != self._bands:
            raise ValueError(f"the Whisper encoder reads {self._bands} mel bands, got {mels.shape[1]}")
        (states,) = self._session.run([WHISPER_OUTPUT], {WHISPER_INPUT: mels})
        return np.asarray(states, np.float32)


def with_graphs(spec: EnsembleSpec) -> tuple[EncoderSpec, ...]:
    """The encoders whose graphs a bundle holds: those that some member reads, and Whisper's, which functionals read too."""
    read = inputs_of(spec)
    return tuple(
        encoder
        for encoder in spec.encoders
        if encoder.kind == "whisper-onnx"
        or (encoder in read and encoder.kind in ("speech-transformer", "text-transformer"))
    )
