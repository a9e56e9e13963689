"""Dropout whose random numbers cost little on a CPU.

torch draws a random number of its own for every value there, and that was a sixth of the training step of a small member
(docs/LOG.md). Here 64 random bits decide about four values, so a probability is a multiple of 2^-16.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

_STEPS: Final = 2**16
_PER_DRAW: Final = 4
"""Decisions of 16 bits in one draw of 64."""


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """In training, each value of `x` is 0 with probability `p`, and 1 / (1 - p) times itself else.

    A seed of torch's own generator decides it. Elsewhere than on a CPU, and where it is compiled, it is torch's dropout.
    """
    if not training or p <= 0:
        return x
    dropped, count = round(p * _STEPS), x.numel()
    if x.device.type != "cpu" or not 0 < dropped < _STEPS or torch.compiler.is_compiling():
        return F.dropout(x, p)
    bits = torch.empty(-(-count // _PER_DRAW), dtype=torch.int64).random_(-(2**63), None)
    kept = torch.empty(x.shape)  # 0 and 1 as they will be multiplied: no booleans in between
    torch.ge(bits.view(torch.int16)[:count].view(x.shape), dropped - _STEPS // 2, out=kept)
    return x * kept.mul_(_STEPS / (_STEPS - dropped)).to(x.dtype)
