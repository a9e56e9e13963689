"""Torch networks to ONNX graphs with dynamic batch and time.

`torch.onnx.export(dynamo=True)` traces through `torch.export`; the older exporter can give wrong numbers on masked
input without an error.

Shapes: B = batch, F = frames (a multiple of the encoder's `stack`), T = tokens, M = members, d = width of a frame,
S = hidden states taken.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from model.bundle import (
    TEXT_INPUTS,
    TEXT_OUTPUT,
    WHISPER_INPUT,
    WHISPER_OUTPUT,
    ensemble_outputs,
    inputs_of,
    mask_of,
)
from model.network.deepser import DeepSER
from model.network.encoders import TextEncoder
from model.network.metaclassifier import WIDTH, Ensemble, MetaClassifier
from model.network.whisper_encoder import WhisperEncoder
from model.spec import EncoderSpec
from model.text import MAX_TOKENS

OPSET: Final = 20
"""The first with Gelu as one node; every onnxruntime since 1.17 has it."""
MEMBER_OUTPUTS: Final = ("logits", "attributes")
META_INPUT: Final = "member_outputs"

_BATCH = Dim("batch", min=1, max=4096)
_MAX_FRAMES: Final = 1 << 16
_EXAMPLE_BATCH: Final = 2
_EXAMPLE_STEPS: Final = 3  # the exporter takes a size of 0 or 1 for a constant


@dataclass(frozen=True, slots=True)
class _Input:
    """An example of one input, and the dimensions of it that vary."""

    name: str
    example: Tensor
    varies: dict[int, Dim]


class _Positional(nn.Module):
    """A network of `(frames by modality, masks by modality)` as one of tensors in a row, which is what a graph has."""

    def __init__(self, network: nn.Module, modalities: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.modalities = tuple(modalities)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        frames = dict(zip(self.modalities, tensors[::2], strict=True))
        masks = dict(zip(self.modalities, tensors[1::2], strict=True))
        outputs: tuple[Tensor, ...] = self.network(frames, masks)
        return outputs


def export_ensemble(ensemble: Ensemble) -> onnx.ModelProto:
    """Members, meta-classifier and calibration as one graph: what is served."""
    encoders = inputs_of(ensemble.spec)
    network = _Positional(ensemble, [encoder.name for encoder in encoders])
    return _export(network, _modality_inputs(encoders), ensemble_outputs(ensemble.spec))


def export_member(member: DeepSER, encoders: Mapping[str, EncoderSpec]) -> onnx.ModelProto:
    """One member: frames and masks of its modalities to `logits [B, 8]` and `attributes [B, 3]`."""
    inputs = [encoders[name] for name in member.spec.modalities]
    return _export(_Positional(member, member.spec.modalities), _modality_inputs(inputs), MEMBER_OUTPUTS)


def export_meta(meta: MetaClassifier, members: int) -> onnx.ModelProto:
    """The souped meta-classifier: `member_outputs [B, 11 M]` to `logits [B, 8]` and `attributes [B, 3]`."""
    example = torch.zeros(_EXAMPLE_BATCH, WIDTH * members)
    return _export(meta, [_Input(META_INPUT, example, {0: _BATCH})], MEMBER_OUTPUTS)


def export_text_encoder(network: TextEncoder) -> onnx.ModelProto:
    """A text encoder: `ids [B, T]` and `mask [B, T]` to `hidden [B, T, d]`."""
    varies = {0: _BATCH, 1: Dim("tokens", min=1, max=MAX_TOKENS)}
    ids = torch.ones(_EXAMPLE_BATCH, _EXAMPLE_STEPS, dtype=torch.int64)
    inputs = [_Input(name, example, varies) for name, example in zip(TEXT_INPUTS, (ids, ids.bool()), strict=True)]
    return _export(network, inputs, [TEXT_OUTPUT])


def export_whisper_encoder(network: WhisperEncoder) -> onnx.ModelProto:
    """A Whisper encoder: `mels [B, bands, 2 F]` to `states [B, F, S, d]`, F up to 30 s."""
    example = torch.zeros(_EXAMPLE_BATCH, network.bands, 2 * _EXAMPLE_STEPS)
    varies = {0: _BATCH, 2: 2 * Dim("frames", min=1, max=network.max_frames)}
    return _export(network, [_Input(WHISPER_INPUT, example, varies)], [WHISPER_OUTPUT])


def _modality_inputs(encoders: Iterable[EncoderSpec]) -> list[_Input]:
    inputs = []
    for encoder in encoders:
        steps = Dim(f"{encoder.name}_steps", min=1, max=_MAX_FRAMES // encoder.stack)
        varies = {0: _BATCH, 1: steps if encoder.stack == 1 else encoder.stack * steps}
        shape = (_EXAMPLE_BATCH, _EXAMPLE_STEPS * encoder.stack)
        inputs.append(_Input(encoder.name, torch.zeros(*shape, encoder.dim), varies))
        inputs.append(_Input(mask_of(encoder.name), torch.ones(shape, dtype=torch.bool), varies))
    return inputs


def _export(network: nn.Module, inputs: Sequence[_Input], outputs: Iterable[str]) -> onnx.ModelProto:
    shapes: object = tuple(item.varies for item in inputs)
    if isinstance(network, _Positional):
        shapes = (shapes,)  # torch.export describes *args as one tuple
    with warnings.catch_warnings():
        # Axes that are equal keep one name; and torch's own tree code calls what torch deprecated.
        warnings.filterwarnings("ignore", "# The axis name: .* will not be used")
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
        program = torch.onnx.export(
            network.eval(),
            tuple(item.example for item in inputs),
            dynamo=True,
            dynamic_shapes=shapes,  # type: ignore[arg-type]  # declared without the nesting that *args needs
            input_names=[item.name for item in inputs],
            output_names=list(outputs),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    return _stripped(program.model_proto)


def _stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the exporter's notes: they hold stack traces with the paths of the machine it ran on."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for item in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    return model
