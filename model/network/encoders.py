"""Frozen encoders of `transformers`, reduced to what members read.

Shapes: B = batch, T = tokens, d = encoder width.
"""

from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from transformers import AutoModel

SUMMED_LAYERS: Final = 4
"""The paper's choice: the sum of the last four hidden states."""


class TextEncoder(nn.Module):
    """A frozen text encoder: ids `int64 [B, T]`, mask `bool [B, T]` -> sum of its last four hidden states `[B, T, d]`."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(requires_grad=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The summed hidden states `[B, T, d]`."""
        output = self.backbone(input_ids=ids, attention_mask=mask.to(torch.int64), output_hidden_states=True)
        return torch.stack(output.hidden_states[-SUMMED_LAYERS:]).sum(dim=0)


def load_text_encoder(folder: Path) -> TextEncoder:
    """Loads a text encoder from a folder in the format of `transformers` (config.json, model.safetensors).

    Raises:
        OSError: if the folder holds no such model.
    """
    return TextEncoder(AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32))
