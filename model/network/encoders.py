"""Frozen text encoders of `transformers`, reduced to what members read.

Shapes: B = batch, T = tokens, d = encoder width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModel

SUMMED_LAYERS: Final = 4
"""The paper's choice: the sum of the last four hidden states."""


class TextEncoder(nn.Module):
    """A frozen text encoder: ids `int64 [B, T]`, mask `bool [B, T]` -> sum of its last four hidden states `[B, T, d]`.

    Tokens are padded on the right, and the id behind them does not matter: positions count from the left (RoBERTa's from 2,
    over ids that are not its padding id), and padded keys have no weight.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(requires_grad=False)

    @property
    def dim(self) -> int:
        """Width of a frame."""
        return int(self.backbone.config.hidden_size)  # type: ignore[union-attr, arg-type]  # torch types it as a tensor

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The summed hidden states `[B, T, d]`."""
        output = self.backbone(input_ids=ids, attention_mask=mask.to(torch.int64), output_hidden_states=True)
        return summed_states(output.hidden_states, output.last_hidden_state)


def summed_states(states: Sequence[Tensor], last: Tensor) -> Tensor:
    """Sum in float32 of the last four hidden states, the last one being what the model gives: after its final norm.

    Releases of `transformers` differ in whether the last of `states` is taken before that norm or after it. In WavLM and
    HuBERT (large) the two differ; the paper's is the one after it, as all releases before the fifth had it.
    """
    taken = [*states[-SUMMED_LAYERS:-1], last]
    return torch.stack([state.float() for state in taken]).sum(dim=0)


def load_text_encoder(folder: Path, attention: Literal["eager", "sdpa"] = "eager") -> TextEncoder:
    """Loads a text encoder from a folder in the format of `transformers` (config.json, model.safetensors).

    Args:
        folder: holds the model.
        attention: which of two equal computations; the exported graph is made of "eager".

    Raises:
        OSError: if the folder holds no such model.
    """
    return TextEncoder(AutoModel.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32))
