"""Networks to ONNX graphs with dynamic batch and time.

Shapes: B = batch, S = steps of a modality, F = stack * S frames, d = width of a frame, T = tokens, M = members.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from model.network.deepser import DeepSER
from model.network.encoders import TextEncoder
from model.network.metaclassifier import WIDTH, Ensemble, MetaClassifier
from model.runtime import MASK_SUFFIX
from model.spec import EncoderSpec

OPSET: Final = 20
_EXAMPLE_BATCH: Final = 3
_EXAMPLE_STEPS: Final = 5


class _Flat(nn.Module):
    """A member or ensemble whose inputs are a flat list of frames and masks: what ONNX graphs have."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.names = list(names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        frames = dict(zip(self.names, inputs[::2], strict=True))
        masks = dict(zip(self.names, inputs[1::2], strict=True))
        return tuple(self.network(frames, masks))


def export_fusion(
    network: DeepSER | Ensemble, encoders: Mapping[str, EncoderSpec], outputs: Sequence[str], path: Path
) -> None:
    """A member or the whole ensemble; one pair of inputs per modality: `NAME` and `NAME_mask`."""
    names = list(encoders)
    inputs: list[Tensor] = []
    shapes: list[dict[int, Any]] = []
    for name, encoder in encoders.items():
        frames = encoder.stack * _EXAMPLE_STEPS
        inputs += [
            torch.randn(_EXAMPLE_BATCH, frames, encoder.dim),
            torch.ones(_EXAMPLE_BATCH, frames, dtype=torch.bool),
        ]
        time = encoder.stack * torch.export.Dim(f"{name}_steps", min=1, max=1024)
        shapes += [{0: torch.export.Dim.AUTO, 1: time}, {0: torch.export.Dim.AUTO, 1: time}]
    flat = [part for name in names for part in (name, name + MASK_SUFFIX)]
    _export(_Flat(network, names), tuple(inputs), flat, outputs, (tuple(shapes),), path)


def export_meta(meta: MetaClassifier, members: int, path: Path) -> None:
    """The souped meta-classifier: `member_outputs [B, 11 M]` to `logits`, `attributes`."""
    example = torch.randn(_EXAMPLE_BATCH, WIDTH * members)
    _export(meta, (example,), ["member_outputs"], ["logits", "attributes"], ({0: torch.export.Dim.AUTO},), path)


def export_text_encoder(encoder: TextEncoder, path: Path) -> None:
    """The text encoder: `ids int64 [B, T]`, `mask bool [B, T]` to `hidden [B, T, d]`."""
    ids = torch.randint(1000, 2000, (_EXAMPLE_BATCH, _EXAMPLE_STEPS))
    mask = torch.ones(_EXAMPLE_BATCH, _EXAMPLE_STEPS, dtype=torch.bool)
    dynamic = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    _export(encoder, (ids, mask), ["ids", "mask"], ["hidden"], (dynamic, dynamic), path)


def fusion_encoders(network: DeepSER | Ensemble, encoders: Mapping[str, EncoderSpec]) -> dict[str, EncoderSpec]:
    """The modalities a network reads, in the ensemble's order of encoders."""
    members = [network.spec] if isinstance(network, DeepSER) else network.spec.members
    used = {name for member in members for name in member.modalities}
    return {name: encoder for name, encoder in encoders.items() if name in used}


def _export(
    network: nn.Module,
    example: tuple[Tensor, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_shapes: tuple[Any, ...],
    path: Path,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    program = torch.onnx.export(
        network.eval(),
        example,
        dynamo=True,
        dynamic_shapes=dynamic_shapes,
        input_names=list(inputs),
        output_names=list(outputs),
        opset_version=OPSET,
        verbose=False,
    )
    if program is None:
        raise RuntimeError(f"the exporter gave nothing for {path.name}")
    program.save(path, external_data=False)
