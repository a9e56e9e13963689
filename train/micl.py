"""MICL, the modality-invariant contrastive loss: what two modalities of one utterance say lies near, in a shared space.

Of views z of length 1 (`model.network.fused.Views`) of two modalities a and b, and s_ij = z_a,i . z_b,j / tau:

    pair form     L_i = -log( exp s_ii / (exp s_ii + sum over negatives j of exp s_ij) )
    class form    L_i = -mean over positives p of log( exp s_ip / (sum over positives and negatives of exp s_ij) )

The loss is the mean over utterances, over both directions (a to b, b to a) and over all pairs of modalities. An utterance of
the SAME class is never a negative: pushing angry voices away from other angry words would undo what the classifier learns.
In the pair form it counts for nothing, in the class form it is a positive. A clip without one dominant class is nobody's
negative and has none. A modality that an utterance lacks (no transcript) is left out.

Source: the pair form is InfoNCE, van den Oord et al. (2018), arXiv:1807.03748; the class form is L_out of Khosla et al. (2020),
arXiv:2004.11362; hard negatives are weighed as in Robinson et al. (2021), arXiv:2010.04592.

Shapes: B = batch, N = modalities, P = width of a view.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Final, Literal

import torch
from torch import Tensor

Positives = Literal["pair", "class"]
WEIGHT: Final = 0.2
TEMPERATURE: Final = 0.07
_NEVER: Final = -1e9
"""In the place of the logit of what is in no sum; finite, so that its slope is 0 and not NaN."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """How modalities are compared.

    Attributes:
        weight: of this loss beside the others.
        temperature: tau.
        positives: "pair", or "class" for the supervised form.
        hardness: how much more a near negative counts: weights proportional to exp(hardness * cosine), with mean 1; 0 has all
            count alike.
    """

    weight: float = WEIGHT
    temperature: float = TEMPERATURE
    positives: Positives = "pair"
    hardness: float = 0.0


def contrastive_loss(views: Tensor, present: Tensor, classes: Tensor, contrast: Contrast) -> Tensor:
    """Scalar loss of a batch, without its weight.

    Args:
        views: `[B, N, P]`, of length 1.
        present: `bool [B, N]`: false where an utterance lacks a modality.
        classes: `int64 [B]`, -1 without one dominant class.
        contrast: the form of the loss.
    """
    known = (classes >= 0).unsqueeze(1) & (classes >= 0).unsqueeze(0)
    same = known & (classes.unsqueeze(1) == classes.unsqueeze(0))
    itself = torch.eye(len(classes), dtype=torch.bool, device=classes.device)
    positives = itself | same if contrast.positives == "class" else itself
    losses = []
    for a, b in combinations(range(views.shape[1]), 2):
        whole = present[:, a] & present[:, b]
        there = whole.unsqueeze(1) & whole.unsqueeze(0)
        cosines = views[:, a] @ views[:, b].t()
        for towards in (cosines, cosines.t()):
            each = _info_nce(towards, positives & there, known & ~same & there, contrast)
            losses.append((each * whole).sum() / whole.sum().clamp(min=1))
    return torch.stack(losses).mean()


def _info_nce(cosines: Tensor, positives: Tensor, negatives: Tensor, contrast: Contrast) -> Tensor:
    """Loss `[B]` of each row as an anchor, 0 where it has no positive; all arguments `[B, B]`."""
    logits = cosines / contrast.temperature
    weighed = logits
    if contrast.hardness > 0:
        raised = (contrast.hardness * cosines.detach()).masked_fill(~negatives, _NEVER)
        count = negatives.sum(dim=1, keepdim=True).clamp(min=1)
        weighed = logits + torch.log_softmax(raised, dim=1) + torch.log(count)
    inside = torch.where(positives, logits, torch.where(negatives, weighed, torch.full_like(logits, _NEVER)))
    chances = (logits - torch.logsumexp(inside, dim=1, keepdim=True)).masked_fill(~positives, 0.0)
    return -chances.sum(dim=1) / positives.sum(dim=1).clamp(min=1)
