"""A loaded bundle that scores batches, on ONNX Runtime: used by the daemon, by the parity checks and by evaluation.

Sessions are thread-safe and shared; nothing here holds the state of a stream.

Shapes: B = batch, F = frames, T = tokens, M = members, d = width of a frame.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.adaptation import Adaptation
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
from model.features import Frames, collate
from model.onnx_encoders import OnnxHiddenStates, OnnxSpeechEncoder, OnnxTextEncoder, with_graphs
from model.onnx_session import CPU, load_graph
from model.posteriors import Posteriors, posteriors_of, shares_of
from model.spec import EncoderSpec


class EnsembleRuntime:
    """The bundle's ensemble: frames of every modality to posteriors.

    Args:
        bundle: what to run.
        threads: threads of one call.
        providers: as for `make_session`.
        fallback: number of a smaller ensemble to run in its place, as `Manifest.fallbacks` counts them from 1; 0 for all
            members.

    Attributes:
        reads: the encoders whose frames it needs.

    Raises:
        BundleError: if the graph is not what the manifest says.
        ProviderError: as for `make_session`.
    """

    def __init__(self, bundle: Bundle, threads: int, providers: Sequence[str] = (CPU,), *, fallback: int = 0) -> None:
        self._spec, self._abstain_below, file = bundle.spec, bundle.manifest.abstain_below, ENSEMBLE
        self._used: tuple[str, ...] = ()
        if fallback:
            chosen, file = bundle.manifest.fallbacks[fallback - 1], fallback_file(fallback)
            self._spec, self._abstain_below = bundle.spec.reduced(chosen.members), chosen.abstain_below
            self._used = chosen.members
        self.reads = inputs_of(self._spec)
        inputs, outputs = ensemble_inputs(self._spec), ensemble_outputs(self._spec)
        self._session = load_graph(bundle.path / file, threads, providers, inputs, outputs)

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
        for encoder in self.reads:
            rows = [_frames_of(encoder, index, item) for index, item in enumerate(frames)]
            feed[encoder.name], feed[mask_of(encoder.name)] = collate(rows, encoder.stack)
        spec, told = self._spec, [MODALITY_SHARE] if self._spec.shared_by else []
        outputs = self._session.run(["probabilities", "attributes", "member_probabilities", *told], feed)
        found = [
            posteriors_of(probabilities, attributes, members, spec.trained_attributes, self._abstain_below)
            for probabilities, attributes, members in zip(*outputs[:3], strict=True)
        ]
        shares = shares_of(spec.shared_by, outputs[3]) if told else [()] * len(found)
        return [
            replace(posteriors, modality_share=share, members_used=self._used)
            for posteriors, share in zip(found, shares, strict=True)
        ]


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
    """

    bundle: Bundle
    ensemble: EnsembleRuntime
    speech: tuple[OnnxSpeechEncoder, ...]
    text: tuple[OnnxTextEncoder, ...]
    hidden_states: OnnxHiddenStates | None
    adaptation: Adaptation | None = None
    fallbacks: tuple[EnsembleRuntime, ...] = ()


def load_runtime(path: Path, threads: int, acoustic_providers: Sequence[str] = (CPU,)) -> Runtime:
    """Checks and loads a bundle.

    Args:
        path: the bundle's folder.
        threads: threads of one call.
        acoustic_providers: for the encoders that read audio, which take most of the time; the rest runs on the CPU.

    Raises:
        BundleError: if the bundle is damaged or not what its manifest says.
        ProviderError: as for `make_session`.
    """
    bundle = read_bundle(path)
    graphs = with_graphs(bundle.spec)
    speech = tuple(
        OnnxSpeechEncoder(bundle, encoder, threads, acoustic_providers)
        for encoder in graphs
        if encoder.kind == "speech-transformer"
    )
    text = tuple(OnnxTextEncoder(bundle, encoder, threads) for encoder in graphs if encoder.kind == "text-transformer")
    whisper = bundle.spec.whisper
    hidden_states = OnnxHiddenStates(bundle, threads, acoustic_providers) if whisper and whisper.states else None
    numbers = range(1, len(bundle.manifest.fallbacks) + 1)
    fallbacks = tuple(EnsembleRuntime(bundle, threads, fallback=number) for number in numbers)
    whole = EnsembleRuntime(bundle, threads)
    return Runtime(bundle, whole, speech, text, hidden_states, bundle.adaptation(), fallbacks)


def _frames_of(encoder: EncoderSpec, index: int, item: Mapping[str, Frames]) -> Frames:
    if encoder.name not in item:
        raise ValueError(f"utterance {index} has no {encoder.name!r} frames, only {sorted(item)}")
    frames = item[encoder.name]
    if frames.ndim != 2 or frames.shape[1] != encoder.dim:
        raise ValueError(f"{encoder.name!r} frames are [F, {encoder.dim}], utterance {index} has {list(frames.shape)}")
    if not np.isfinite(frames).all():
        raise ValueError(f"{encoder.name!r} frames of utterance {index} hold NaN or infinity")
    return frames
