"""A loaded bundle that scores batches, through ONNX Runtime. Used by the daemon, by parity checks and by examples.

Shapes: B = batch, F = frames, d = width of a frame, M = members.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime

from model.bundle import ENSEMBLE_GRAPH, TEXT_GRAPH, TEXT_TOKENIZER, Bundle, BundleError, read_bundle
from model.features import Frames, collate
from model.posteriors import Posteriors, posteriors_of
from model.text import TextTokenizer, word_frames

ENSEMBLE_OUTPUTS: Final = ("probabilities", "attributes", "member_probabilities")
MASK_SUFFIX: Final = "_mask"
TEXT_BUCKET: Final = 8
"""Token counts are padded to a multiple of this, so that the runtime sees few shapes."""


def make_session(graph: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU.

    Its memory does not grow with the shapes it has seen: the arena is off.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = graph if isinstance(graph, bytes) else os.fspath(graph)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


class OnnxTextEncoder:
    """The text encoder that a bundle carries: texts in, frames of their words out."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self._tokenizer = TextTokenizer(bundle.file(TEXT_TOKENIZER))
        self._session = make_session(bundle.file(TEXT_GRAPH), threads)

    def __call__(self, texts: Sequence[str]) -> list[Frames]:
        """Frames `float32 [F, d]` of each text; F is 0 for an empty one."""
        tokens = self._tokenizer.encode(texts)
        padding = ((0, 0), (0, -tokens.ids.shape[1] % TEXT_BUCKET))
        feeds = {"ids": np.pad(tokens.ids, padding), "mask": np.pad(tokens.mask, padding)}
        hidden = np.asarray(self._session.run(["hidden"], feeds)[0])
        return word_frames(hidden[:, : tokens.ids.shape[1]], tokens)


class EnsembleRuntime:
    """The fused ensemble of a bundle."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self.bundle = bundle
        self._spec = bundle.manifest.ensemble
        self._used = [e for e in self._spec.encoders if any(e.name in m.modalities for m in self._spec.members)]
        self._session = make_session(bundle.file(ENSEMBLE_GRAPH), threads)
        expected = sorted(name for e in self._used for name in (e.name, e.name + MASK_SUFFIX))
        inputs = sorted(value.name for value in self._session.get_inputs())
        outputs = [value.name for value in self._session.get_outputs()]
        if inputs != expected or outputs != list(ENSEMBLE_OUTPUTS):
            raise BundleError(
                f"{ENSEMBLE_GRAPH} has inputs {inputs} and outputs {outputs}; the manifest's ensemble needs "
                f"{expected} and {list(ENSEMBLE_OUTPUTS)}"
            )

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the encoders whose frames `score` wants."""
        return tuple(encoder.name for encoder in self._used)

    def feeds(self, items: Sequence[Mapping[str, Frames]]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
        """Padded inputs of the graph for `items`, each modality -> frames `float32 [F, d]`."""
        feeds = {}
        for encoder in self._used:
            values, mask = collate([item[encoder.name] for item in items], encoder.stack)
            feeds[encoder.name], feeds[encoder.name + MASK_SUFFIX] = values, mask
        return feeds

    def score(self, items: Sequence[Mapping[str, Frames]]) -> list[Posteriors]:
        """Posteriors of each item; a result does not depend on its neighbours in the batch.

        Raises:
            ValueError: if the network gave something that is no probability.
        """
        probabilities, attributes, members = (
            np.asarray(value) for value in self._session.run(list(ENSEMBLE_OUTPUTS), self.feeds(items))
        )
        manifest = self.bundle.manifest
        return [
            posteriors_of(*row, self._spec.trained_attributes, manifest.abstain_below)
            for row in zip(probabilities, attributes, members, strict=True)
        ]


def load_runtime(folder: Path, threads: int = 1) -> EnsembleRuntime:
    """Verifies a bundle and loads its ensemble.

    Raises:
        BundleError: if the bundle is damaged or its graph does not fit its manifest.
    """
    return EnsembleRuntime(read_bundle(folder), threads)
