"""The encoders that travel inside a bundle, on ONNX Runtime: waveforms, words and mel frames to hidden states.

No result depends on its neighbours in a batch or on padding. On a device, batches have few shapes (`model.device_shapes`) and
frames can stay where they are (`encode_bound`). Whisper's frames never stay: CTranslate2 decodes from them, functionals are
computed from them, and what is scored together was not heard together.

Shapes: B = batch, T = samples or tokens, M = mel bands, F = frames, S = hidden states taken, D = encoder width, d = S * D.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from onnxruntime import OrtValue

from model.audio import MEL_HOP, SAMPLE_RATE_HZ, Samples, bucket_length
from model.binding import BoundFrames, BoundGraph, Shape
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
from model.device_shapes import (
    SHORTEST_SPEECH,
    Profile,
    filled,
    rows_for,
    speech_length_for,
    speech_profile,
    text_profile,
    tokens_for,
    whisper_profile,
)
from model.features import Frames, collate, standardise
from model.onnx_session import CPU, Provider, load_graph, make_session
from model.providers import ON_CPU, Execution, FixedShape, memory_of, most_rows, providers_of
from model.sources import SourceError, resolve_encoder
from model.spec import EncoderSpec, EnsembleSpec
from model.text import TextTokenizer, TokenBatch, word_frames

SPEECH_STEP: Final = SAMPLE_RATE_HZ // 2
"""Samples that a batch of a speech transformer is rounded up to on a CPU: forty shapes up to 20 s, a tenth of padding."""


class OnnxSpeechEncoder:
    """A speech transformer of the bundle's: utterances to frames.

    Args:
        bundle: where it is.
        spec: an encoder of kind "speech-transformer".
        threads: threads of one call.
        execution: where it runs.

    Raises:
        BundleError: if the bundle does not hold it, or its graph is not what the manifest says.
        ProviderError: as for `make_session`.
    """

    def __init__(self, bundle: Bundle, spec: EncoderSpec, threads: int, execution: Execution = ON_CPU) -> None:
        self.spec, self._bound = spec, execution.encoders_bound
        names = (SPEECH_AUDIO,) if spec.equal_lengths else (SPEECH_AUDIO, SPEECH_AUDIO_MASK)
        outputs = {SPEECH_OUTPUT: (None, None, spec.dim), SPEECH_OUTPUT_MASK: (None, None)}
        try:
            path = resolve_encoder(spec, bundle.path)
        except SourceError as error:
            raise BundleError(f"{bundle.id}: the speech encoder {spec.name!r} cannot be loaded: {error}") from error
        profile = speech_profile(spec, most_rows(execution))
        recorded = [] if spec.equal_lengths else [self._recorded(shape) for shape in execution.recorded]
        providers = _providers(bundle, spec, execution, profile)
        session = load_graph(path, threads, providers, dict.fromkeys(names, (None, None)), outputs)
        self._graph = BoundGraph(session, memory_of(execution.device), recorded)

    @property
    def binds(self) -> bool:
        """Whether frames can stay on the device: not those of an encoder whose batches have one length only."""
        return self._bound and not self.spec.equal_lengths

    def encode(self, audio: Sequence[Samples]) -> list[Frames]:
        """Frames `float32 [F, d]` of each utterance `float32 [T]`, standardised where the encoder was trained so.

        Utterances share one pass, but for an encoder that would hear padding: there only those of one length do.

        Raises:
            ValueError: if an utterance is shorter than one frame.
        """
        if not audio:
            return []
        waves = self._prepared(audio)
        if not self.spec.equal_lengths:
            return self._run(waves, to_host=True).host()
        frames: dict[int, Frames] = {}
        for length in {len(wave) for wave in waves}:
            rows = [row for row, wave in enumerate(waves) if len(wave) == length]
            frames |= zip(rows, self._run([waves[row] for row in rows], to_host=True).host(), strict=True)
        return [frames[row] for row in range(len(waves))]

    def encode_bound(self, audio: Sequence[Samples]) -> BoundFrames:
        """The same frames of one or more utterances, left on the device; only where it `binds`.

        Raises:
            ValueError: if an utterance is shorter than one frame, or there is none.
        """
        return self._run(self._prepared(audio), to_host=False)

    def _prepared(self, audio: Sequence[Samples]) -> list[Samples]:
        if short := [len(samples) for samples in audio if len(samples) < SHORTEST_SPEECH]:
            raise ValueError(
                f"an utterance has at least the {SHORTEST_SPEECH} samples that one frame hears, got {min(short)}"
            )
        return [standardise(samples) if self.spec.standardised else samples for samples in audio]

    def _run(self, waves: Sequence[Samples], *, to_host: bool) -> BoundFrames:
        multiple = 1 if self.spec.equal_lengths else SPEECH_STEP
        if self.binds:
            multiple = speech_length_for(max(map(len, waves), default=0), self.spec.stack)
        rows = rows_for(len(waves)) if self._bound else len(waves)
        padded, mask = collate([wave[:, None] for wave in waves], multiple)
        feed = {SPEECH_AUDIO: filled(padded[:, :, 0], rows)}
        if not self.spec.equal_lengths:
            feed[SPEECH_AUDIO_MASK] = filled(mask, rows)
        hidden, kept = self._graph.run(feed, (SPEECH_OUTPUT, SPEECH_OUTPUT_MASK), to_host=to_host)
        return BoundFrames(hidden, kept, len(waves))

    def _recorded(self, shape: FixedShape) -> Shape:
        size = (shape.rows, speech_length_for(shape.seconds * SAMPLE_RATE_HZ, self.spec.stack))
        return (size, size)


class OnnxTextEncoder:
    """A text encoder of the bundle's: texts to frames.

    Args:
        bundle: where it is.
        spec: an encoder of kind "text-transformer".
        threads: threads of one call.
        execution: where it runs.

    Raises:
        BundleError: if the bundle does not hold it, or its graph is not what the manifest says.
        ProviderError: as for `make_session`.
    """

    def __init__(self, bundle: Bundle, spec: EncoderSpec, threads: int, execution: Execution = ON_CPU) -> None:
        self.spec, self._bound = spec, execution.encoders_bound
        try:
            path = resolve_encoder(spec, bundle.path)
            self._tokenizer = TextTokenizer(bundle.path / tokenizer_file(spec.name))
        except (SourceError, OSError, ValueError) as error:
            raise BundleError(f"{bundle.id}: the text encoder {spec.name!r} cannot be loaded: {error}") from error
        outputs = {TEXT_OUTPUT: (None, None, spec.dim)}
        providers = _providers(bundle, spec, execution, text_profile(most_rows(execution)))
        session = load_graph(path, threads, providers, TEXT_INPUTS, outputs)
        self._graph = BoundGraph(session, memory_of(execution.device))

    @property
    def binds(self) -> bool:
        """Whether frames can stay on the device: not where members read several words as one, as special tokens lie between."""
        return self._bound and self.spec.stack == 1

    def encode(self, texts: Sequence[str]) -> list[Frames]:
        """Frames `float32 [F, d]` of each text, special tokens left out; F is 0 for an empty or blank one.

        A text's frames do not depend on its neighbours: padding is masked and the arithmetic is float32.
        """
        batch = self._tokenizer.encode(texts)
        if not batch.keep.any():
            return [np.zeros((0, self.spec.dim), np.float32) for _ in texts]
        (hidden,) = self._run(batch, to_host=True)
        length = batch.ids.shape[1]
        return word_frames(np.asarray(hidden.numpy(), np.float32)[: len(texts), :length], batch)

    def encode_bound(self, texts: Sequence[str]) -> BoundFrames:
        """The same frames of one or more texts, left on the device; only where it `binds`.

        Special tokens stay among them, masked: members have no positions, so that changes nothing.

        Raises:
            ValueError: if there is no text.
        """
        batch = self._tokenizer.encode(texts)
        (hidden,) = self._run(batch, to_host=False)
        rows, length = hidden.shape()[:2]
        keep = filled(np.pad(batch.keep, ((0, 0), (0, length - batch.keep.shape[1]))), rows)
        return BoundFrames(hidden, OrtValue.ortvalue_from_numpy(keep, self._graph.memory, 0), len(texts))

    def _run(self, batch: TokenBatch, *, to_host: bool) -> list[OrtValue]:
        ids, mask = batch.ids, batch.mask
        if self._bound:
            rows, beyond = rows_for(len(ids)), ((0, 0), (0, tokens_for(ids.shape[1]) - ids.shape[1]))
            ids, mask = filled(np.pad(ids, beyond), rows), filled(np.pad(mask, beyond), rows)
        return self._graph.run({"ids": ids, "mask": mask}, (TEXT_OUTPUT,), to_host=to_host)


class OnnxHiddenStates:
    """The bundle's Whisper encoder: implements `model.whisper.HiddenStates`.

    Args:
        bundle: a bundle with an encoder of kind "whisper-onnx".
        threads: threads of one call.
        execution: where it runs.

    Attributes:
        bands: M.

    Raises:
        BundleError: if the bundle has no such encoder, or its graph is not what the manifest says.
        ProviderError: as for `make_session`.
    """

    def __init__(self, bundle: Bundle, threads: int, execution: Execution = ON_CPU) -> None:
        spec = bundle.spec.whisper
        if spec is None or not spec.states:
            raise BundleError(f"{bundle.id} has no Whisper encoder of its own")
        self._bound = execution.encoders_bound
        outputs = {WHISPER_OUTPUT: (None, None, len(spec.states), spec.dim // len(spec.states))}
        path = bundle.path / graph_file(spec)
        # The number of mel bands, which an engine's shapes need, stands in the graph alone.
        profile = whisper_profile(_bands_of(path), most_rows(execution)) if execution.device == "tensorrt" else {}
        providers = _providers(bundle, spec, execution, profile)
        session = load_graph(path, threads, providers, {WHISPER_INPUT: (None, FIXED, None)}, outputs)
        self.bands = int(session.get_inputs()[0].shape[1])
        recorded = [self._recorded(shape) for shape in execution.recorded]
        self._graph = BoundGraph(session, memory_of(execution.device), recorded)

    def __call__(self, mels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """`float32 [B, M, 2 F]` -> `float32 [B, F, S, D]`.

        An utterance's states do not depend on its neighbours: all have one length, and the arithmetic is float32.

        Raises:
            ValueError: if the mel frames have another number of bands than the graph reads.
        """
        if mels.shape[1] != self.bands:
            raise ValueError(f"the Whisper encoder reads {self.bands} mel bands, got {mels.shape[1]}")
        rows = filled(mels, rows_for(len(mels))) if self._bound else mels
        (states,) = self._graph.run({WHISPER_INPUT: rows}, (WHISPER_OUTPUT,), to_host=True)
        return np.asarray(states.numpy(), np.float32)[: len(mels)]

    def _recorded(self, shape: FixedShape) -> Shape:
        return ((shape.rows, self.bands, bucket_length(shape.seconds * SAMPLE_RATE_HZ) // MEL_HOP),)


def _bands_of(path: Path) -> int:
    return int(make_session(path, 1, (CPU,)).get_inputs()[0].shape[1])


def _providers(bundle: Bundle, spec: EncoderSpec, execution: Execution, profile: Profile) -> tuple[Provider, ...]:
    precision = bundle.manifest.precisions.get(f"encoder {spec.name}", "fp32")
    engines = f"{bundle.id}/{spec.name}"
    graphs = bool(execution.recorded) and spec.kind != "text-transformer" and not spec.equal_lengths
    return providers_of(execution.device, execution.gpu, engines, profile, precision, graphs=graphs)


def with_graphs(spec: EnsembleSpec) -> tuple[EncoderSpec, ...]:
    """The encoders whose graphs a bundle holds: those that some member reads, and Whisper's, which functionals read too."""
    read = inputs_of(spec)
    return tuple(
        encoder
        for encoder in spec.encoders
        if encoder.kind == "whisper-onnx"
        or (encoder in read and encoder.kind in ("speech-transformer", "text-transformer"))
    )
