"""A loaded bundle that scores batches, on ONNX Runtime: used by the daemon, by the parity checks and by evaluation.

Sessions are thread-safe and shared; nothing here holds the state of a stream.

On a device, the frames of speech and text encoders stay there: the ensemble reads them where they are, and what comes back to
the host are posteriors. Whisper's frames, functionals and prosody are made on the host and copied to the device.

Shapes: B = batch, R = rows of a batch on a device, F = frames, T = tokens, M = members, d = width of a frame.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from onnxruntime import OrtValue

from model.adaptation import Adaptation
from model.binding import BoundFrames, BoundGraph, Turn
from model.bundle import (
    ENSEMBLE,
    MODALITY_SHARE,
    Bundle,
    ensemble_inputs,
    ensemble_outputs,
    fallback_file,
    inputs_of,
    mask_of,
    read_bundle,
)
from model.device_shapes import ensemble_profile, filled, frames_for, rows_for
from model.features import Frames, collate
from model.onnx_encoders import OnnxHiddenStates, OnnxSpeechEncoder, OnnxTextEncoder, with_graphs
from model.onnx_session import load_graph
from model.posteriors import Posteriors, posteriors_of, shares_of
from model.providers import ON_CPU, Execution, memory_of, most_rows, providers_of
from model.spec import EncoderSpec

_COMPONENT: Final = "ensemble"
"""What the manifest calls the ensemble and its fallbacks in `precisions`."""


class EnsembleRuntime:
    """The bundle's ensemble: frames of every modality to posteriors.

    Args:
        bundle: what to run.
        threads: threads of one call.
        execution: where it runs.
        fallback: number of a smaller ensemble to run in its place, as `Manifest.fallbacks` counts them from 1; 0 for all
            members.

    Attributes:
        reads: the encoders whose frames it needs.

    Raises:
        BundleError: if the graph is not what the manifest says.
        ProviderError: as for `make_session`.
    """

    def __init__(self, bundle: Bundle, threads: int, execution: Execution = ON_CPU, *, fallback: int = 0) -> None:
        self._spec, self._abstain_below, file = bundle.spec, bundle.manifest.abstain_below, ENSEMBLE
        self._used: tuple[str, ...] = ()
        if fallback:
            chosen, file = bundle.manifest.fallbacks[fallback - 1], fallback_file(fallback)
            self._spec, self._abstain_below = bundle.spec.reduced(chosen.members), chosen.abstain_below
            self._used = chosen.members
        self.reads = inputs_of(self._spec)
        self._bound = execution.ensemble_bound
        self._told = ["probabilities", "attributes", "member_probabilities"]
        self._told += [MODALITY_SHARE] if self._spec.shared_by else []
        inputs, outputs = ensemble_inputs(self._spec), ensemble_outputs(self._spec)
        profile = ensemble_profile(self.reads, most_rows(execution))
        precision = bundle.manifest.precisions.get(_COMPONENT, "fp32")
        engines = f"{bundle.id}/{Path(file).stem}"
        providers = providers_of(execution.ensemble, execution.gpu, engines, profile, precision)
        self._session = load_graph(bundle.path / file, threads, providers, inputs, outputs)
        self._graph = BoundGraph(self._session, memory_of(execution.ensemble))

    def score(
        self, frames: Sequence[Mapping[str, Frames]], bound: Mapping[str, BoundFrames] | None = None
    ) -> list[Posteriors]:
        """Posteriors of utterances; none depends on its neighbours.

        Args:
            frames: per utterance, modality -> `float32 [F, d]`; F may be 0 (no transcript).
            bound: modality -> frames of all these utterances that lie on the ensemble's device already.

        Raises:
            ValueError: if an utterance lacks a modality, or its frames have another width or are not finite.
        """
        if not frames:
            return []
        outputs = self._run_bound(frames, bound or {}) if self._bound else self._run(frames)
        found = [
            posteriors_of(probabilities, attributes, members, self._spec.trained_attributes, self._abstain_below)
            for probabilities, attributes, members in zip(*outputs[:3], strict=True)
        ]
        shared_by = self._spec.shared_by
        shares = shares_of(shared_by, outputs[3]) if shared_by else [()] * len(found)
        return [
            replace(posteriors, modality_share=share, members_used=self._used)
            for posteriors, share in zip(found, shares, strict=True)
        ]

    def _run(self, frames: Sequence[Mapping[str, Frames]]) -> list[npt.NDArray[np.float32]]:
        feed: dict[str, npt.NDArray[np.generic]] = {}
        for encoder in self.reads:
            rows = [_frames_of(encoder, index, item) for index, item in enumerate(frames)]
            feed[encoder.name], feed[mask_of(encoder.name)] = collate(rows, encoder.stack)
        outputs: list[npt.NDArray[np.float32]] = self._session.run(self._told, feed)
        return outputs

    def _run_bound(
        self, frames: Sequence[Mapping[str, Frames]], bound: Mapping[str, BoundFrames]
    ) -> list[npt.NDArray[np.float32]]:
        """The same in few shapes, with frames that lie on the device read there."""
        count = len(frames)
        feed: dict[str, npt.NDArray[np.generic] | OrtValue] = {}
        for encoder in self.reads:
            mask, there = mask_of(encoder.name), bound.get(encoder.name)
            if there is not None and _fits(encoder, there, count):
                feed[encoder.name], feed[mask] = there.frames, there.mask
                continue
            items = frames if there is None else [{encoder.name: rows} for rows in there.host()]
            rows = [_frames_of(encoder, index, item) for index, item in enumerate(items)]
            padded, kept = collate(rows, frames_for(max(map(len, rows)), encoder.stack))
            feed[encoder.name], feed[mask] = filled(padded, rows_for(count)), filled(kept, rows_for(count))
        return [value.numpy()[:count] for value in self._graph.run(feed, self._told, to_host=True)]


@dataclass(frozen=True, slots=True)
class Runtime:
    """A loaded bundle.

    Attributes:
        bundle: where it came from.
        ensemble: frames to posteriors.
        speech: the speech transformers: utterances to frames.
        text: the text transformers: texts to frames.
        hidden_states: Whisper's encoder; None where CTranslate2 encodes.
        adaptation: of functionals to their channel; None where they are read as they are.
        fallbacks: smaller ensembles for when there is not time for the whole one, in the order in which they are turned to.
        shared: whether ensembles read the frames of encoders where those left them (`encode_bound`).
        turn: held from such encoders' passes to the posteriors.
    """

    bundle: Bundle
    ensemble: EnsembleRuntime
    speech: tuple[OnnxSpeechEncoder, ...]
    text: tuple[OnnxTextEncoder, ...]
    hidden_states: OnnxHiddenStates | None
    adaptation: Adaptation | None = None
    fallbacks: tuple[EnsembleRuntime, ...] = ()
    shared: bool = False
    turn: Turn = field(default_factory=lambda: Turn(needed=False))


def load_runtime(path: Path, threads: int, execution: Execution = ON_CPU) -> Runtime:
    """Checks and loads a bundle.

    Args:
        path: the bundle's folder.
        threads: threads of one call.
        execution: where encoders and ensemble run.

    Raises:
        BundleError: if the bundle is damaged or not what its manifest says.
        ProviderError: as for `make_session`.
    """
    bundle = read_bundle(path)
    execution = execution.with_kernels(bundle.manifest.kernels)
    graphs = with_graphs(bundle.spec)
    speech = tuple(
        OnnxSpeechEncoder(bundle, encoder, threads, execution)
        for encoder in graphs
        if encoder.kind == "speech-transformer"
    )
    text = tuple(
        OnnxTextEncoder(bundle, encoder, threads, execution) for encoder in graphs if encoder.kind == "text-transformer"
    )
    whisper = bundle.spec.whisper
    hidden_states = OnnxHiddenStates(bundle, threads, execution) if whisper and whisper.states else None
    numbers = range(1, len(bundle.manifest.fallbacks) + 1)
    fallbacks = tuple(EnsembleRuntime(bundle, threads, execution, fallback=number) for number in numbers)
    whole = EnsembleRuntime(bundle, threads, execution)
    turn = Turn(needed=bool(execution.recorded))
    adaptation = bundle.adaptation()
    return Runtime(bundle, whole, speech, text, hidden_states, adaptation, fallbacks, execution.shared, turn)


def _fits(encoder: EncoderSpec, there: BoundFrames, count: int) -> bool:
    """Whether frames can be read where they are; else they are collated on the host, like others.

    Raises:
        ValueError: if they are of another batch or width.
    """
    rows, length, dim = there.frames.shape()
    if there.count != count or dim != encoder.dim:
        raise ValueError(
            f"{encoder.name!r} frames of {count} utterances are [{count}, F, {encoder.dim}], "
            f"got [{there.count}, {length}, {dim}]"
        )
    return bool(rows == rows_for(count) and length % encoder.stack == 0)


def _frames_of(encoder: EncoderSpec, index: int, item: Mapping[str, Frames]) -> Frames:
    if encoder.name not in item:
        raise ValueError(f"utterance {index} has no {encoder.name!r} frames, only {sorted(item)}")
    frames = item[encoder.name]
    if frames.ndim != 2 or frames.shape[1] != encoder.dim:
        raise ValueError(f"{encoder.name!r} frames are [F, {encoder.dim}], utterance {index} has {list(frames.shape)}")
    if not np.isfinite(frames).all():
        raise ValueError(f"{encoder.name!r} frames of utterance {index} hold NaN or infinity")
    return frames
