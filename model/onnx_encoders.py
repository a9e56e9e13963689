"""The encoders that travel inside a bundle, on ONNX Runtime: words to frames, mel frames to hidden states.

Shapes: B = batch, T = tokens, M = mel bands, F = frames, S = hidden states taken, D = encoder width, d = S * D.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from model.bundle import (
    FIXED,
    TEXT_INPUTS,
    TEXT_OUTPUT,
    WHISPER_INPUT,
    WHISPER_OUTPUT,
    Bundle,
    BundleError,
    graph_file,
    tokenizer_file,
)
from model.features import Frames
from model.onnx_session import CPU, load_graph
from model.sources import SourceError, resolve_encoder
from model.spec import EncoderSpec
from model.text import TextTokenizer, word_frames


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
        outputs = {TEXT_OUTPUT: (None, None, self.spec.dim)}
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


def text_encoder_of(bundle: Bundle) -> EncoderSpec | None:
    """The bundle's text encoder, None where it reads no text."""
    return next((encoder for encoder in bundle.spec.encoders if encoder.kind == "text-transformer"), None)
