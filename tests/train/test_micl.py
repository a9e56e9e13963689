"""The contrastive loss against a reference in plain loops."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from train.micl import Contrast, contrastive_loss

PAIR, CLASS = Contrast(temperature=0.3), Contrast(temperature=0.3, positives="class")
CLASSES = torch.tensor([0, 1, 0, 2, -1, 1])
ROWS, WIDTH = len(CLASSES), 5


def views(modalities: int = 2, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return F.normalize(torch.randn(ROWS, modalities, WIDTH), dim=2)


def everything(modalities: int = 2) -> torch.Tensor:
    return torch.ones(ROWS, modalities, dtype=torch.bool)


def reference(found: torch.Tensor, present: torch.Tensor, classes: torch.Tensor, contrast: Contrast) -> float:
    """The module's formulae, one utterance at a time."""
    z, there, label = found.double().numpy(), present.numpy(), classes.tolist()
    rows, losses = range(len(label)), []
    for a, b in combinations(range(z.shape[1]), 2):
        for one, other in ((a, b), (b, a)):
            each = []
            for i in rows:
                if not (there[i, a] and there[i, b]):
                    continue
                partners = [j for j in rows if there[j, a] and there[j, b]]
                same = [j for j in partners if j == i or (label[i] == label[j] and label[i] >= 0)]
                positives = same if contrast.positives == "class" else [i]
                negatives = [j for j in partners if label[j] >= 0 and label[i] >= 0 and j not in same]
                cosine = {j: float(z[i, one] @ z[j, other]) for j in partners}
                raised = {j: math.exp(contrast.hardness * cosine[j]) for j in negatives}
                mean = sum(raised.values()) / len(raised) if raised else 1.0
                total = sum(math.exp(cosine[j] / contrast.temperature) for j in positives)
                total += sum(raised[j] / mean * math.exp(cosine[j] / contrast.temperature) for j in negatives)
                chances = [math.log(math.exp(cosine[j] / contrast.temperature) / total) for j in positives]
                each.append(-sum(chances) / len(chances))
            losses.append(sum(each) / max(1, len(each)))
    return float(np.mean(losses))


@pytest.mark.parametrize("contrast", [PAIR, CLASS, replace(PAIR, hardness=1.5), replace(CLASS, hardness=0.5)])
@pytest.mark.parametrize("modalities", [2, 3])
def test_the_loss_is_the_formula(contrast: Contrast, modalities: int) -> None:
    present = everything(modalities)
    for there in (
        present,
        present.clone().index_put_((torch.tensor([2, 3]), torch.tensor([1, 0])), torch.tensor(False)),
    ):
        found = contrastive_loss(views(modalities), there, CLASSES, contrast)
        assert float(found) == pytest.approx(reference(views(modalities), there, CLASSES, contrast), abs=1e-5)


def test_utterances_of_one_class_do_not_push_each_other_apart() -> None:
    """Rows 0 and 2 are both of class 0: where the other's view lies makes no difference to either, in the pair form."""
    found = views().requires_grad_()
    only = torch.tensor([0, -1, 0, -1, -1, -1])
    loss = contrastive_loss(found, everything(), only, PAIR)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert found.grad is not None
    assert found.grad.abs().max() < 1e-6
    pushing = contrastive_loss(views(), everything(), torch.tensor([0, -1, 1, -1, -1, -1]), PAIR)
    assert float(pushing) > 0.1


def test_the_class_form_draws_utterances_of_one_class_together() -> None:
    found = views().requires_grad_()
    optimizer = torch.optim.Adam([found], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        unit = F.normalize(found, dim=2)
        contrastive_loss(unit, everything(), CLASSES, CLASS).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    unit = F.normalize(found.detach(), dim=2)
    cosines = unit[:, 0] @ unit[:, 1].t()
    assert min(float(cosines[0, 2]), float(cosines[1, 5]), float(cosines[0, 0])) > 0.9
    assert max(float(cosines[0, 1]), float(cosines[0, 3]), float(cosines[1, 3])) < 0.3


def test_a_row_without_one_of_its_modalities_changes_nothing() -> None:
    whole = contrastive_loss(views()[:5], everything()[:5], CLASSES[:5], CLASS)
    there = everything()
    there[5, 1] = False
    for filling in (0.0, 1.0):
        found = views()
        found[5] = filling
        assert torch.allclose(contrastive_loss(found, there, CLASSES, CLASS), whole)


def test_no_row_with_both_modalities_gives_zero_and_a_gradient_of_zero() -> None:
    found = views().requires_grad_()
    loss = contrastive_loss(found, ~everything(), CLASSES, replace(PAIR, hardness=1.0))
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert float(loss.detach()) == 0.0
    assert found.grad is not None
    assert not found.grad.any()


def test_the_order_of_the_modalities_does_not_matter() -> None:
    found = views()
    turned = contrastive_loss(found.flip(1), everything(), CLASSES, PAIR)
    assert torch.allclose(contrastive_loss(found, everything(), CLASSES, PAIR), turned)
