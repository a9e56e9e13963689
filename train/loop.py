"""Training one member: the step, the epoch, selection of the best epoch."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.labels import ATTRIBUTES, class_mask
from model.network.member import Member
from model.network.metaclassifier import UNTRAINED_LOGIT
from model.spec import EncoderSpec
from train.config import StageConfig
from train.dataset import (
    Examples,
    batches_by_length,
    decided,
    labels_of,
    passes_by_length,
    steps_of,
    tensors,
)
from train.errors import RecipeError
from train.execution import Execution, moved
from train.history import History
from train.losses import PAPER, Labels, Mixing, Terms, Totals, draw_mixing, multitask_loss, totals_of
from train.metrics import balanced_macro_f1
from train.micl import Contrast, contrastive_loss
from train.resume import Standing, module_device
from train.transfer.start import Auxiliary, Rows

log = logging.getLogger(__name__)

SELECTION_RESAMPLES: Final = 10
"""Balanced resamples of the held-out set over which a selection score is averaged, in every stage."""
_PREDICTION_BATCH: Final = 64

EpochSource = Callable[[np.random.Generator], Examples]
"""Draws the examples of one epoch: all of them, a balanced subset, with texts exchanged."""


@dataclass(frozen=True, slots=True)
class StageData:
    """What a stage trains on and selects by.

    Attributes:
        epoch: draws the examples of an epoch.
        dev: held-out examples; None keeps the last epoch.
        class_weights: `[8]`.
        trained_classes: classes with a logit of their own.
        terms: weights of classes and attributes in the loss.
        contrast: how the member's views are compared; None where it has none.
        auxiliary: a loss beside these; None for none.
        from_start: the weights that the stage begins with compete with its epochs.
        compared: classes that the loss compares, if not all: one that a member knows and these examples lack is not
            unlearned, because its logit has no gradient.
    """

    epoch: EpochSource
    dev: Examples | None
    class_weights: Tensor
    trained_classes: tuple[str, ...]
    terms: Terms = PAPER
    contrast: Contrast | None = None
    auxiliary: Auxiliary | None = None
    from_start: bool = False
    compared: tuple[str, ...] = ()


def class_bias(trained_classes: tuple[str, ...]) -> Tensor:
    """`[8]`: 0 for trained classes, a large negative logit for the others."""
    return torch.where(torch.from_numpy(class_mask(trained_classes)), 0.0, UNTRAINED_LOGIT)


def train_stage(
    member: Member,
    encoders: Mapping[str, EncoderSpec],
    data: StageData,
    config: StageConfig,
    seed: int,
    execution: Execution | None = None,
) -> History:
    """Trains `member` in place and leaves it at its best epoch, on the device of `execution`.

    One optimizer serves the whole stage; every `config.accumulate` batches take one optimizer step. The count of epochs
    without a gain begins with the stage.

    Args:
        member: the network.
        encoders: the modalities it reads.
        data: examples, weights, held-out set.
        config: epochs, batch size, learning rate, mixup.
        seed: decides order, mixup and dropout.
        execution: where the stage runs, and where it leaves points to continue from.

    Raises:
        RecipeError: if the processes cannot share out a step's batches evenly.
    """
    execution = execution or Execution()
    ranks = execution.ranks
    if config.accumulate % ranks.world:
        raise RecipeError(
            f"accumulate is {config.accumulate}: {ranks.world} processes share out a step's batches, so it must be a "
            f"multiple of {ranks.world}"
        )
    torch.manual_seed(seed)
    member.to(execution.device)
    rate, decay = config.learning_rate, config.weight_decay
    beside = data.auxiliary.to(execution.device).parameters() if data.auxiliary else ()
    learned = [parameter for parameter in (*member.parameters(), *beside) if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=decay, fused=True)
    best = copy.deepcopy(member.state_dict())
    standing = Standing(member, optimizer, np.random.default_rng(seed), best, History())
    if execution.resume is not None:
        execution.resume.restore(standing)
    step, bias = Step(member, encoders, data, config, execution), class_bias(data.trained_classes)
    if data.from_start and data.dev is not None and not standing.history.rows:
        standing.history.start_score = selection_score(member, encoders, data.dev, bias)
    while not _is_over(standing.history, config):
        history, epoch = standing.history, len(standing.history.rows)
        if ranks.world > 1:
            torch.manual_seed(hash((seed, epoch, ranks.rank)) % 2**63)  # dropout of its own, and equal after a kill
        examples = data.epoch(standing.rng)
        losses = _train_epoch(step, examples, standing, epoch)
        score = float(epoch) if data.dev is None else selection_score(member, encoders, data.dev, bias)
        loss = ranks.add(float(np.mean(losses)))
        history.rows.append({"epoch": epoch, "loss": loss, "dev_macro_f1": score, "examples": len(examples)})
        if score > history.best_score:
            standing.best, history.best_epoch = copy.deepcopy(member.state_dict()), epoch
        if execution.resume is not None and ranks.rank == 0 and execution.resume.is_due(epoch + 1):
            execution.resume.save(standing)
        execution.on_epoch(history.rows[-1])
    member.load_state_dict(standing.best)
    member.eval()
    return standing.history


def _is_over(history: History, config: StageConfig) -> bool:
    """All epochs are done, or `patience` of them have brought no better score. Decided from THIS stage's rows alone."""
    done = len(history.rows)
    return done >= config.epochs or (config.patience is not None and done - 1 - history.best_epoch >= config.patience)


def _train_epoch(step: "Step", examples: Examples, standing: Standing, epoch: int) -> list[float]:
    """One pass over `examples`; the loss of every optimizer step."""
    config, member, rng = step.config, step.member, standing.rng
    member.train()
    lengths = np.array([len(frames) for frames in examples.frames[member.spec.modalities[0]]])
    batches = list(batches_by_length(rng.permutation(len(examples)), lengths, config.batch_size, rng))
    groups = [batches[start : start + config.accumulate] for start in range(0, len(batches), config.accumulate)]
    losses = []
    for number, group in enumerate(groups):
        _set_rate(standing.optimizer, config, (epoch + number / len(groups)) / config.epochs)
        standing.optimizer.zero_grad()
        losses.append(step.gradients([examples.subset(rows) for rows in group], rng))
        torch.nn.utils.clip_grad_norm_(member.parameters(), config.clip_norm)
        standing.optimizer.step()
    standing.history.steps += -(-len(batches) // config.accumulate)
    if (taken := _steps_of(standing.optimizer)) != standing.history.steps:
        raise RuntimeError(f"the optimizer took {taken} steps, {standing.history.steps} were due after epoch {epoch}")
    return losses


def _steps_of(optimizer: torch.optim.Optimizer) -> int:
    """Steps that the optimizer itself has counted."""
    return max((int(moments["step"]) for moments in optimizer.state.values()), default=0)


class Step:
    """Everything of an optimizer step but the optimizer: the gradients of one or several batches.

    Args:
        member: the network.
        encoders: the modalities it reads.
        data: gives class weights and trained classes.
        config: mixup, precision.
        execution: device, compilation, processes.
    """

    def __init__(
        self,
        member: Member,
        encoders: Mapping[str, EncoderSpec],
        data: StageData,
        config: StageConfig,
        execution: Execution,
    ) -> None:
        self.member = member
        self.config = config
        self._inputs = {name: encoders[name] for name in member.spec.modalities}
        self._weights = data.class_weights.to(execution.device)
        self._terms, self._contrast, self._auxiliary = data.terms, data.contrast, data.auxiliary
        self._bias = class_bias(data.compared or data.trained_classes).to(execution.device)
        self._execution = execution
        self._fuse = torch.compile(member.fuse, dynamic=True) if execution.compile else member.fuse

    def gradients(self, parts: Sequence[Examples], rng: np.random.Generator) -> float:
        """Adds the gradient of the step's loss, over all of its batches together; returns that loss.

        With several processes, each computes its share of the batches, and the loss is this share's.
        """
        mixings = [self._mixing(len(part), rng) for part in parts]
        labels = [
            mixing.labels(labels_of(part)) if mixing else labels_of(part)
            for part, mixing in zip(parts, mixings, strict=True)
        ]
        # One batch keeps its own means, to the last bit; several share the counts of all.
        totals = totals_of(labels) if len(parts) > 1 else None
        ranks, loss = self._execution.ranks, 0.0
        for number in range(ranks.rank, len(parts), ranks.world):
            part_loss = self._loss(parts[number], mixings[number], labels[number], totals)
            part_loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            loss += float(part_loss.detach())
        ranks.add_gradients(self.member)
        return loss

    def _mixing(self, rows: int, rng: np.random.Generator) -> Mixing | None:
        config = self.config
        is_mixed = config.mixup > 0 and rng.random() < config.mixup
        return draw_mixing(rows, config.mixup_alpha, rng) if is_mixed else None

    def _loss(self, part: Examples, mixing: Mixing | None, labels: Labels, totals: Totals | None) -> Tensor:
        """Loss of one batch, mixed or not: MixUp acts here and not in the network."""
        device = self._execution.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            x, views = self._representation(part)
            logits, attributes = self.member.classify(mixing.values(x) if mixing else x)
        there = Labels(labels.classes.to(device), labels.attributes.to(device), labels.rated.to(device))
        loss = multitask_loss(logits.float(), attributes.float(), there, self._weights, self._bias, totals, self._terms)
        share = 1.0 if totals is None else len(part) / totals.rows
        if self._auxiliary is not None:
            loss = loss + share * self._auxiliary(
                self.member, x.float(), lambda rows: self._representation(rows)[0].float()
            )
        if self._contrast is None or views is None:
            return loss
        return loss + share * self._contrast.weight * self._contrasted(part, views, self._contrast)

    def _contrasted(self, part: Examples, views: Tensor, contrast: Contrast) -> Tensor:
        """MICL of one batch: of its own utterances, never mixed, against each other."""
        present = np.stack([[len(rows) > 0 for rows in part.frames[name]] for name in self._inputs], axis=1)
        there = torch.from_numpy(present).to(views.device), torch.from_numpy(part.dominant).to(views.device)
        return contrastive_loss(views.float(), *there, contrast)

    def _representation(self, part: Rows) -> tuple[Tensor, Tensor | None]:
        """x `[B, D]` and views of a batch: on a CPU in passes of like lengths, because padding costs it more than they do."""
        device = self._execution.device
        if device.type != "cpu":
            fused = self._fuse(*(moved(found, device) for found in tensors(part.frames, self._inputs)))
            return fused.x, fused.views
        passes = passes_by_length(steps_of(part.frames, self._inputs))
        found = [self._fuse(*tensors(part.subset(rows).frames, self._inputs)) for rows in passes]
        order = torch.from_numpy(np.argsort(np.concatenate(passes)))
        views = [one.views for one in found if one.views is not None]
        return torch.cat([one.x for one in found])[order], torch.cat(views)[order] if views else None


def _set_rate(optimizer: torch.optim.Optimizer, config: StageConfig, progress: float) -> None:
    """Linear warm-up, then half a cosine to zero; `progress` runs from 0 to 1 over the stage."""
    if progress < config.warmup:
        factor = progress / config.warmup
    else:
        factor = 0.5 * (1.0 + np.cos(np.pi * (progress - config.warmup) / (1.0 - config.warmup)))
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * max(factor, 0.01)


def selection_score(member: Member, encoders: Mapping[str, EncoderSpec], dev: Examples, bias: Tensor) -> float:
    """Macro-F1 on the WHOLE held-out set, averaged over balanced resamples; rows without consensus do not count.

    Raises:
        CorpusError: if all rows are without consensus.
    """
    rows = decided(dev)
    guesses = predict(member, encoders, dev.subset(rows), bias)[0].argmax(axis=1)
    return balanced_macro_f1(dev.dominant[rows], guesses, SELECTION_RESAMPLES, seed=0)


@torch.no_grad()
def predict(
    member: Member, encoders: Mapping[str, EncoderSpec], examples: Rows, bias: Tensor
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Posteriors `[N, 8]` and attributes `[N, 3]` of every example, in the examples' order; where the member is."""
    member.eval()
    posterior = np.zeros((len(examples), len(bias)), np.float32)
    attributes = np.zeros((len(examples), len(ATTRIBUTES)), np.float32)
    lengths = np.array([len(frames) for frames in examples.frames[member.spec.modalities[0]]])
    order = np.argsort(lengths, kind="stable")
    inputs, device = {name: encoders[name] for name in member.spec.modalities}, module_device(member)
    for start in range(0, len(order), _PREDICTION_BATCH):
        rows = order[start : start + _PREDICTION_BATCH]
        frames, masks = tensors(examples.subset(rows).frames, inputs)
        logits, values = member(moved(frames, device), moved(masks, device))
        posterior[rows] = torch.softmax(logits.cpu() + bias, dim=1).numpy()
        attributes[rows] = values.cpu().numpy()
    return posterior, attributes
