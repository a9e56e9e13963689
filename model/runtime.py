"""A loaded bundle that scores batches, on ONNX Runtime: used by the daemon, by the parity checks and by evaluation.

Sessions are thread-safe and shared; nothing here holds the state of a stream.

Shapes: B = batch, F = frames, T = tokens, M = members, d = width of a frame.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.adaptation import Adaptation
from model.bundle import ENSEMBLE, Bundle, inputs_of, mask_of, read_bundle
from model.features import Frames, collate
from model.onnx_encoders import OnnxHiddenStates, OnnxSpeechEncoder, OnnxTextEncoder, with_graphs
from model.onnx_session import CPU, load_graph
from model.posteriors import Posteriors, posteriors_of
from model.spec import EncoderSpec


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
        self._session = load_graph(path, threads, providers, manifest.inputs, manifest.outputs)

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
        speech: the speech transformers: utterances to frames.
        text: the text transformers: texts to frames.
        hidden_states: Whisper's encoder; None where CTranslate2 encodes.
        adaptation: of functionals to their channel; None where they are read as they are.
    """

    bundle: Bundle
    ensemble: EnsembleRuntime
    speech: tuple[OnnxSpeechEncoder, ...]
    text: tuple[OnnxTextEncoder, ...]
    hidden_states: OnnxHiddenStates | None
    adaptation: Adaptation | None = None


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
    return Runtime(bundle, EnsembleRuntime(bundle, threads), speech, text, hidden_states, bundle.adaptation())


def _frames_of(encoder: EncoderSpec, index: int, item: Mapping[str, Frames]) -> Frames:
    if encoder.name not in item:
        raise ValueError(f"utterance {index} has no {encoder.name!r} frames, only {sorted(item)}")
    frames = item[encoder.name]
    if frames.ndim != 2 or frames.shape[1] != encoder.dim:
        raise ValueError(f"{encoder.name!r} frames are [F, {encoder.dim}], utterance {index} has {list(frames.shape)}")
    if not np.isfinite(frames).all():
        raise ValueError(f"{encoder.name!r} frames of utterance {index} hold NaN or infinity")
    return frames
