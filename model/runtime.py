"""A loaded bundle that scores batches, on ONNX Runtime: used by the daemon, by the parity checks and by evaluation.

Sessions are thread-safe and shared; nothing here holds the state of a stream.

Shapes: B = batch, F = frames, T = tokens, M = members, d = width of a frame.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native

from model.bundle import (
    ENSEMBLE,
    TEXT_INPUTS,
    TEXT_OUTPUT,
    Bundle,
    BundleError,
    Tensors,
    inputs_of,
    mask_of,
    read_bundle,
    tokenizer_file,
)
from model.features import Frames, collate
from model.posteriors import Posteriors, posteriors_of
from model.sources import SourceError, resolve_encoder
from model.spec import EncoderSpec
from model.text import TextTokenizer, word_frames

CPU: Final = "CPUExecutionProvider"
_ERRORS_ONLY: Final = 3
_LOAD_ERRORS: Final = (
    native.Fail,
    native.InvalidArgument,
    native.InvalidGraph,
    native.InvalidProtobuf,
    native.NotImplemented,
    native.RuntimeException,
)
"""What onnxruntime raises for a graph that it cannot run; it has no base class for them."""


class ProviderError(RuntimeError):
    """ONNX Runtime cannot compute where it was asked to; the message says what it has."""


def make_session(model: Path | bytes, threads: int, providers: Sequence[str] = (CPU,)) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session that keeps no memory between calls.

    With inputs of every length, the CPU arena and its memory patterns keep the largest block of each shape: both are off.

    Args:
        model: a file or its bytes.
        threads: threads of one call.
        providers: ONNX Runtime's execution providers in order of preference, each of which must be there.

    Raises:
        ProviderError: if a provider is not there or does not start: never a silent fallback.
    """
    available = onnxruntime.get_available_providers()
    if missing := [name for name in providers if name not in available]:
        raise ProviderError(f"this onnxruntime has no {', '.join(missing)}: it has {', '.join(available)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = _ERRORS_ONLY
    session = onnxruntime.InferenceSession(model, options, providers=list(providers))
    if silent := [name for name in providers if name not in session.get_providers()]:
        raise ProviderError(
            f"onnxruntime has {', '.join(silent)} but could not start it: check its driver and libraries"
        )
    return session


class OnnxTextEncoder:
    """The bundle's text encoder: texts to frames.

    Args:
        bundle: a bundle with an encoder of kind "text-transformer".
        threads: threads of one call.
        providers: as for `make_session`.

    Raises:
        BundleError: if the bundle has no such encoder, or its graph is not what the manifest says.
        ProviderError: as for `make_session`.
    """

    def __init__(self, bundle: Bundle, threads: int, providers: Sequence[str] = (CPU,)) -> None:
        spec = text_encoder_of(bundle)
        if spec is None:
            raise BundleError(f"{bundle.id} has no text encoder")
        self.spec = spec
        try:
            path = resolve_encoder(self.spec, bundle.path)
            self._tokenizer = TextTokenizer(bundle.path / tokenizer_file(self.spec.name))
        except (SourceError, OSError, ValueError) as error:
            raise BundleError(f"{bundle.id}: the text encoder {self.spec.name!r} cannot be loaded: {error}") from error
        self._session = _load(path, threads, providers)
        _check(path, self._session, TEXT_INPUTS, {TEXT_OUTPUT: (None, None, self.spec.dim)})

    def encode(self, texts: Sequence[str]) -> list[Frames]:
        """Frames `float32 [F, d]` of each text, special tokens left out; F is 0 for an empty or blank one.

        A text's frames do not depend on its neighbours: padding is masked and the arithmetic is float32.
        """
        batch = self._tokenizer.encode(texts)
        if not batch.keep.any():
            return [np.zeros((0, self.spec.dim), np.float32) for _ in texts]
        (hidden,) = self._session.run([TEXT_OUTPUT], {"ids": batch.ids, "mask": batch.mask})
        return word_frames(np.asarray(hidden, np.float32), batch)


class EnsembleRuntime:
    """The bundle's ensemble: frames of every modality to posteriors.

    Args:
        bundle: what to run.
        threads: threads of one call.
        providers: as for `make_session`.

    Raises:
        BundleError: if the graph is not what the manifest says.
        ProviderError: as for `make_session`.
    """

    def __init__(self, bundle: Bundle, threads: int, providers: Sequence[str] = (CPU,)) -> None:
        manifest, path = bundle.manifest, bundle.path / ENSEMBLE
        self._manifest = manifest
        self._inputs = inputs_of(manifest.ensemble)
        self._session = _load(path, threads, providers)
        _check(path, self._session, manifest.inputs, manifest.outputs)

    def score(self, frames: Sequence[Mapping[str, Frames]]) -> list[Posteriors]:
        """Posteriors of utterances; none depends on its neighbours.

        Args:
            frames: per utterance, modality -> `float32 [F, d]`; F may be 0 (no transcript).

        Raises:
            ValueError: if an utterance lacks a modality, or its frames have another width or are not finite.
        """
        if not frames:
            return []
        feed: dict[str, npt.NDArray[np.generic]] = {}
        for encoder in self._inputs:
            rows = [_frames_of(encoder, index, item) for index, item in enumerate(frames)]
            feed[encoder.name], feed[mask_of(encoder.name)] = collate(rows, encoder.stack)
        outputs = self._session.run(["probabilities", "attributes", "member_probabilities"], feed)
        spec, threshold = self._manifest.ensemble, self._manifest.abstain_below
        return [
            posteriors_of(probabilities, attributes, members, spec.trained_attributes, threshold)
            for probabilities, attributes, members in zip(*outputs, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Runtime:
    """A loaded bundle.

    Attributes:
        bundle: where it came from.
        ensemble: frames to posteriors.
        text: texts to frames; None where the bundle reads no text.
    """

    bundle: Bundle
    ensemble: EnsembleRuntime
    text: OnnxTextEncoder | None


def load_runtime(path: Path, threads: int, providers: Sequence[str] = (CPU,)) -> Runtime:
    """Checks and loads a bundle.

    Raises:
        BundleError: if the bundle is damaged or not what its manifest says.
        ProviderError: as for `make_session`.
    """
    bundle = read_bundle(path)
    text = OnnxTextEncoder(bundle, threads, providers) if text_encoder_of(bundle) else None
    return Runtime(bundle, EnsembleRuntime(bundle, threads, providers), text)


def text_encoder_of(bundle: Bundle) -> EncoderSpec | None:
    """The bundle's text encoder, None where it reads no text."""
    return next((encoder for encoder in bundle.spec.encoders if encoder.kind == "text-transformer"), None)


def _frames_of(encoder: EncoderSpec, index: int, item: Mapping[str, Frames]) -> Frames:
    if encoder.name not in item:
        raise ValueError(f"utterance {index} has no {encoder.name!r} frames, only {sorted(item)}")
    frames = item[encoder.name]
    if frames.ndim != 2 or frames.shape[1] != encoder.dim:
        raise ValueError(f"{encoder.name!r} frames are [F, {encoder.dim}], utterance {index} has {list(frames.shape)}")
    if not np.isfinite(frames).all():
        raise ValueError(f"{encoder.name!r} frames of utterance {index} hold NaN or infinity")
    return frames


def _load(path: Path, threads: int, providers: Sequence[str]) -> onnxruntime.InferenceSession:
    try:
        return make_session(path, threads, providers)
    except _LOAD_ERRORS as error:
        version = onnxruntime.__version__
        raise BundleError(
            f"{path} does not load in onnxruntime {version}; upgrade it or export again: {error}"
        ) from error


def _check(path: Path, session: onnxruntime.InferenceSession, inputs: Tensors, outputs: Tensors) -> None:
    for side, nodes, expected in (
        ("inputs", session.get_inputs(), inputs),
        ("outputs", session.get_outputs(), outputs),
    ):
        found = {node.name: tuple(size if isinstance(size, int) else None for size in node.shape) for node in nodes}
        if found != expected:
            raise BundleError(f"{path} has the {side} {found}, the manifest says {expected}: export the bundle again")
