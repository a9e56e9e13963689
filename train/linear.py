"""Fitting members of the family "linear": one smooth problem in the place of epochs, solved to its end.

    minimise   mean loss over all draws of the training set + l2 / 2 * || W - W_0 ||^2

W are the heads' weights, without their biases. W_0 is what the member begins with: 0, or the source's weights where it is
transferred (L2-SP, as `train.transfer.start.Anchor` has it for the other families). Towards a source the pull is max(1, held /
clips) times as strong, so that a handful of clips moves little. The loss is stage 1's (`train.losses`), but all classes that
are the first of some clip have the same mass in it: for that, stage 2 draws balanced subsets. Of several strengths the held-out
speakers choose, as they choose epochs. Without rated attributes the problem is convex, unless the loss is focal.

Shapes: N = examples of all draws, D = width of what the heads read.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.network.linear import Linear
from model.spec import EncoderSpec
from train.config import LinearConfig
from train.dataset import Examples, concatenate, labels_of, steps_of, tensors
from train.execution import Execution, moved
from train.history import History
from train.loop import StageData, class_bias, selection_score
from train.losses import Labels, class_weights, multitask_loss, smoothed

log = logging.getLogger(__name__)

_ITERATIONS: Final = 200
"""Of L-BFGS, at most; it ends where nothing is gained any more."""
_REMEMBERED: Final = 10
_READ: Final = 64
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

    Every process of several solves the whole problem: that takes seconds to minutes.

    Args:
        member: the network; its weights are where the fit begins, and what holds it.
        encoders: the modalities it reads.
        data: draws and held-out set; class weights are the fit's own, `contrast` and `auxiliary` have nothing to act on.
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
    scarce = (
        max(1.0, config.held / len(set(drawn.ids))) if data.from_start else 1.0
    )  # of clips, however often they count
    for number, l2 in enumerate(config.l2 if data.dev is not None else config.l2[:1]):
        member.load_state_dict(begun)
        loss, iterations = problem.solve(l2 * scarce)
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
        inputs = {name: encoders[name] for name in member.spec.modalities}
        first, copies = _distinct(drawn, member.spec.modalities)
        self._x = _represented(member, inputs, drawn.subset(first), device)
        self._copies = torch.from_numpy(copies).to(device)
        self._labels = Labels(labels.classes.to(device), labels.attributes.to(device), labels.rated.to(device))
        bias = class_bias(data.compared or data.trained_classes)
        self._weights = _balancing(drawn, smoothed(labels.classes, bias, data.terms.label_smoothing)).to(device)
        self._bias = bias.to(device)

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
        if (iterations := int(state["n_iter"])) >= _ITERATIONS:
            log.warning("%s, l2 = %g: still descending after %d iterations", self._member.spec.name, l2, iterations)
        return loss, iterations

    def _loss(self) -> Tensor:
        logits, attributes = (values[self._copies] for values in self._member.classify(self._x))
        return multitask_loss(logits, attributes, self._labels, self._weights, self._bias, terms=self._terms)


@torch.no_grad()
def _represented(
    member: Linear, encoders: Mapping[str, EncoderSpec], examples: Examples, device: torch.device
) -> Tensor:
    """What the heads read of every example, `float32 [N, D]`; utterances of like lengths are pooled together."""
    order = np.argsort(steps_of(examples.frames, encoders), kind="stable")
    x = torch.empty(len(order), member.classifier.in_features, device=device)
    for start in range(0, len(order), _READ):
        rows = order[start : start + _READ]
        frames, masks = tensors(examples.subset(rows).frames, encoders)
        x[torch.from_numpy(rows).to(device)] = member.represent(moved(frames, device), moved(masks, device))
    return x


def _distinct(examples: Examples, modalities: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows of the very same arrays are computed once: where each first stands, and which of these every row is, `[N]`."""
    number: dict[tuple[int, ...], int] = {}
    first: list[int] = []
    copies = np.empty(len(examples), np.int64)
    for row in range(len(examples)):
        arrays = tuple(id(examples.frames[name][row]) for name in modalities)
        if arrays not in number:
            number[arrays] = len(first)
            first.append(row)
        copies[row] = number[arrays]
    return np.array(first, np.int64), copies


def _balancing(examples: Examples, targets: Tensor) -> Tensor:
    """`[8]`: gives every class the same mass of `targets [N, 8]`; 1 for classes that only stray votes are for."""
    leading = np.isin(np.arange(targets.shape[1]), examples.dominant)
    return torch.where(torch.from_numpy(leading), class_weights(targets.numpy(), 1.0), 1.0)
