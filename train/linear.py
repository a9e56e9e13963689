"""Fitting members of the family "linear": one convex problem in the place of epochs, solved to its end.

    minimise   mean loss over all draws of the training set + l2 / 2 * || W - W_0 ||^2

W are the heads' weights, without their biases. W_0 is what the member begins with: 0, or the source's weights where it is
transferred (L2-SP, as `train.transfer.start.Anchor` has it for the other families). The loss is stage 1's (`train.losses`), but
every class has the same mass in it: that is what stage 2 draws balanced subsets for. The strength of the pull is chosen on the
held-out speakers, as epochs are.

Shapes: N = examples of all draws, D = width of what the heads read.
"""

import copy
from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor

from model.network.linear import Linear
from model.spec import EncoderSpec
from train.config import LinearConfig
from train.dataset import Examples, concatenate, labels_of, steps_of, tensors
from train.execution import Execution, moved
from train.history import History
from train.loop import StageData, class_bias, selection_score
from train.losses import Labels, multitask_loss

_ITERATIONS: Final = 200
"""Of L-BFGS, at most; it ends where nothing is gained any more."""
_REMEMBERED: Final = 10
_READ: Final = 256
"""Utterances that are pooled at a time."""


def fit_linear(
    member: Linear,
    encoders: Mapping[str, EncoderSpec],
    data: StageData,
    config: LinearConfig,
    seed: int,
    execution: Execution | None = None,
) -> History:
    """Fits `member` in place and leaves it at the best strength, on the device of `execution`.

    Every process of several solves the whole problem: it takes seconds.

    Args:
        member: the network; its weights are where the fit begins, and what holds it.
        encoders: the modalities it reads.
        data: draws, weights, held-out set; `contrast` and `auxiliary` have nothing to act on here.
        config: strengths, and how many draws.
        seed: decides the draws.
        execution: where it is computed.

    Returns:
        A row per strength, in the order in which they were tried; `best_epoch` is the row that was kept.
    """
    execution = execution or Execution()
    member.to(execution.device).eval()
    rng, history = np.random.default_rng(seed), History()
    drawn = concatenate([data.epoch(rng) for _ in range(config.draws)])
    problem = _Problem(member, encoders, data, drawn, execution)
    bias, begun = class_bias(data.trained_classes), copy.deepcopy(member.state_dict())
    best = begun
    if data.from_start and data.dev is not None:
        history.start_score = selection_score(member, encoders, data.dev, bias)
    for number, l2 in enumerate(config.l2 if data.dev is not None else config.l2[:1]):
        member.load_state_dict(begun)
        loss, iterations = problem.solve(l2)
        score = 0.0 if data.dev is None else selection_score(member, encoders, data.dev, bias)
        history.rows.append({"l2": l2, "loss": loss, "dev_macro_f1": score, "examples": len(drawn)})
        history.steps += iterations
        if score > history.best_score:
            best, history.best_epoch = copy.deepcopy(member.state_dict()), number
        execution.on_epoch(history.rows[-1])
    member.load_state_dict(best)
    return history


class _Problem:
    """One fit, for any strength of the pull.

    Args:
        member: what is fitted.
        encoders: the modalities it reads.
        data: gives the loss.
        drawn: the N examples.
        execution: where it is computed.
    """

    def __init__(
        self,
        member: Linear,
        encoders: Mapping[str, EncoderSpec],
        data: StageData,
        drawn: Examples,
        execution: Execution,
    ) -> None:
        device, labels = execution.device, labels_of(drawn)
        self._member, self._terms = member, data.terms
        self._x = _represented(member, {name: encoders[name] for name in member.spec.modalities}, drawn, device)
        self._labels = Labels(labels.classes.to(device), labels.attributes.to(device), labels.rated.to(device))
        self._weights = data.class_weights.to(device)
        self._bias = class_bias(data.compared or data.trained_classes).to(device)

    def solve(self, l2: float) -> tuple[float, int]:
        """From the member's weights to the problem's, in place; the mean loss there, without the pull, and iterations."""
        pulled = [self._member.classifier.weight, self._member.regressor.weight]
        held = [weight.detach().clone() for weight in pulled]
        optimizer = torch.optim.LBFGS(
            self._member.parameters(),
            max_iter=_ITERATIONS,
            history_size=_REMEMBERED,
            tolerance_grad=1e-6,
            tolerance_change=1e-9,
            line_search_fn="strong_wolfe",
        )

        def total() -> Tensor:
            optimizer.zero_grad()
            away = torch.stack([(weight - was).square().sum() for weight, was in zip(pulled, held, strict=True)])
            value = self._loss() + l2 / 2 * away.sum()
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            return value

        optimizer.step(total)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        with torch.no_grad():
            loss = float(self._loss())
        (state,) = (found for found in optimizer.state.values() if "n_iter" in found)
        return loss, int(state["n_iter"])

    def _loss(self) -> Tensor:
        logits, attributes = self._member.classify(self._x)
        return multitask_loss(logits, attributes, self._labels, self._weights, self._bias, terms=self._terms)


@torch.no_grad()
def _represented(
    member: Linear, encoders: Mapping[str, EncoderSpec], examples: Examples, device: torch.device
) -> Tensor:
    """What the heads read of every example, `float32 [N, D]`; utterances of like lengths are pooled together."""
    order = np.argsort(steps_of(examples.frames, encoders), kind="stable")
    found = []
    for start in range(0, len(order), _READ):
        frames, masks = tensors(examples.subset(order[start : start + _READ]).frames, encoders)
        found.append(member.represent(moved(frames, device), moved(masks, device)))
    return torch.cat(found)[torch.from_numpy(np.argsort(order)).to(device)]
