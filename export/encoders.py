"""The frozen encoders as ONNX graphs: speech transformers, text transformers, Whisper's encoder.

Masks go in with what they mask, so that padding and neighbours in a batch change nothing; batch and time are dynamic; the
output is what members read. Graphs are made of attention's plain computation ("eager"), which has the fewest nodes.

Shapes: B = batch, T = samples or tokens, F = frames (20 ms), d = encoder width, S = hidden states taken.
"""

from pathlib import Path
from typing import Final

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from export.errors import ExportError
from export.shared_weights import WeightStore
from export.to_onnx import BATCH, EXAMPLE_BATCH, EXAMPLE_STEPS, GraphInput, trace
from model.audio import WHISPER_WINDOW
from model.bundle import (
    SPEECH_AUDIO,
    SPEECH_AUDIO_MASK,
    SPEECH_OUTPUT,
    SPEECH_OUTPUT_MASK,
    TEXT_INPUTS,
    TEXT_OUTPUT,
    WHISPER_INPUT,
    WHISPER_OUTPUT,
)
from model.device_shapes import SHORTEST_SPEECH
from model.network.encoders import TextEncoder
from model.network.speech_encoder import SpeechEncoder
from model.network.whisper_encoder import WhisperEncoder
from model.text import MAX_TOKENS

INLINE_BYTES: Final = 1 << 29
"""Graphs with more constants keep them in a file beside: protobuf ends at 2 GB, and reading it takes twice its size."""
_EXAMPLE_SAMPLES: Final = 4000


class _SpeechGraph(nn.Module):
    """A speech encoder with the inputs of its graph: no mask where padding would be heard all the same."""

    def __init__(self, network: SpeechEncoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, audio: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.network.encode(audio, torch.ones_like(audio, dtype=torch.bool) if mask is None else mask)


def export_speech_encoder(network: SpeechEncoder) -> onnx.ModelProto:
    """A speech encoder: `audio [B, T]` and `audio_mask [B, T]` to `hidden [B, F, d]` and `hidden_mask [B, F]`.

    The graph of one that takes utterances of one length only (`needs_equal_lengths`) has no `audio_mask`: nothing can be
    padded by mistake.

    Raises:
        ExportError: if one frame hears more than the shortest utterance that is served.
    """
    if network.receptive_field > SHORTEST_SPEECH:
        raise ExportError(
            f"a frame of this speech encoder hears {network.receptive_field} samples, and utterances of {SHORTEST_SPEECH} "
            f"are served: it needs a front end of the usual 25 ms"
        )
    varies = {0: BATCH, 1: Dim("samples", min=network.receptive_field, max=WHISPER_WINDOW)}
    audio = torch.zeros(EXAMPLE_BATCH, _EXAMPLE_SAMPLES)
    inputs = [GraphInput(SPEECH_AUDIO, audio, varies)]
    if not network.needs_equal_lengths:
        inputs.append(GraphInput(SPEECH_AUDIO_MASK, torch.ones_like(audio, dtype=torch.bool), varies))
    return trace(_SpeechGraph(network), inputs, [SPEECH_OUTPUT, SPEECH_OUTPUT_MASK])


def export_text_encoder(network: TextEncoder) -> onnx.ModelProto:
    """A text encoder: `ids [B, T]` and `mask [B, T]` to `hidden [B, T, d]`."""
    varies = {0: BATCH, 1: Dim("tokens", min=1, max=MAX_TOKENS)}
    ids = torch.ones(EXAMPLE_BATCH, EXAMPLE_STEPS, dtype=torch.int64)
    inputs = [GraphInput(name, example, varies) for name, example in zip(TEXT_INPUTS, (ids, ids.bool()), strict=True)]
    return trace(network, inputs, [TEXT_OUTPUT])


def export_whisper_encoder(network: WhisperEncoder) -> onnx.ModelProto:
    """A Whisper encoder: `mels [B, bands, 2 F]` to `states [B, F, S, d]`, F up to 30 s."""
    example = torch.zeros(EXAMPLE_BATCH, network.bands, 2 * EXAMPLE_STEPS)
    varies = {0: BATCH, 2: 2 * Dim("frames", min=1, max=network.max_frames)}
    return trace(network, [GraphInput(WHISPER_INPUT, example, varies)], [WHISPER_OUTPUT])


def weights_file(graph: Path) -> Path:
    """Where the constants of a graph are that is too large to hold them."""
    return graph.with_suffix(".weights")


def write_graph(graph: onnx.ModelProto, path: Path, inline: int = INLINE_BYTES) -> None:
    """Writes a graph to a file; where its constants have more than `inline` bytes, those to `NAME.weights` beside it.

    What is at either place already is replaced. The graph may be changed: its constants then refer to that file.
    """
    weights_file(path).unlink(missing_ok=True)
    if sum(len(tensor.raw_data) for tensor in graph.graph.initializer) > inline:
        WeightStore(path.parent).write_with_weights(graph, path.name)
    else:
        onnx.save(graph, path)
