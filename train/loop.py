"""Training one member: the step, the epoch, selection of the best epoch."""

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.labels import class_mask
from model.network.deepser import DeepSER
from model.network.metaclassifier import UNTRAINED_LOGIT
from model.spec import EncoderSpec
from train.config import StageConfig
from train.dataset import Batch, Examples, batches_by_length, make_batch
from train.losses import mixup, multitask_loss
from train.metrics import balanced_macro_f1

log = logging.getLogger(__name__)

_SELECTION_RESAMPLES = 10
_PREDICTION_BATCH = 64

EpochSource = Callable[[np.random.Generator], Examples]
"""Draws the examples of one epoch: all of them, a balanced subset, with texts exchanged."""
State = dict[str, Tensor]


@dataclass(slots=True)
class History:
    """What happened in a stage: a row per epoch, and which epoch was kept."""

    rows: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    steps: int = 0


@dataclass(frozen=True, slots=True)
class StageData:
    """What a stage trains on and selects by.

    Attributes:
        epoch: draws the examples of an epoch.
        dev: held-out examples; None keeps the last epoch.
        class_weights: `[8]`.
        trained_classes: classes with a logit of their own.
    """

    epoch: EpochSource
    dev: Examples | None
    class_weights: Tensor
    trained_classes: tuple[str, ...]


def class_bias(trained_classes: tuple[str, ...]) -> Tensor:
    """`[8]`: 0 for trained classes, a large negative logit for the others."""
    return torch.where(torch.from_numpy(class_mask(trained_classes)), 0.0, UNTRAINED_LOGIT)


def train_stage(
    member: DeepSER,
    encoders: Mapping[str, EncoderSpec],
    data: StageData,
    config: StageConfig,
    seed: int,
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None,
) -> History:
    """Trains `member` in place and leaves it at its best epoch.

    One optimizer serves the whole stage; every batch takes one optimizer step.

    Args:
        member: the network.
        encoders: the modalities it reads.
        data: examples, weights, held-out set.
        config: epochs, batch size, learning rate, mixup.
        seed: decides order, mixup and dropout.
        on_epoch: called with each epoch's row.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(member.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    bias = class_bias(data.trained_classes)
    inputs = {name: encoders[name] for name in member.spec.modalities}
    history, best_state, best_score = History(), copy.deepcopy(member.state_dict()), -1.0
    for epoch in range(config.epochs):
        examples = data.epoch(rng)
        losses = []
        member.train()
        lengths = np.array([len(frames) for frames in examples.frames[member.spec.modalities[0]]])
        batches = list(batches_by_length(rng.permutation(len(examples)), lengths, config.batch_size, rng))
        for number, rows in enumerate(batches):
            _set_rate(optimizer, config, (epoch + number / len(batches)) / config.epochs)
            batch = make_batch(examples.subset(rows), inputs)
            loss = _loss(member, batch, data.class_weights, bias, config, rng)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            torch.nn.utils.clip_grad_norm_(member.parameters(), config.clip_norm)
            optimizer.step()
            losses.append(float(loss.detach()))
            history.steps += 1
        score = float(epoch) if data.dev is None else selection_score(member, encoders, data.dev, bias)
        row = {"epoch": epoch, "loss": float(np.mean(losses)), "dev_macro_f1": score, "examples": len(examples)}
        history.rows.append(row)
        on_epoch(row)
        if score > best_score:
            best_state, best_score, history.best_epoch = copy.deepcopy(member.state_dict()), score, epoch
    member.load_state_dict(best_state)
    member.eval()
    return history


def _loss(
    member: DeepSER, batch: Batch, weights: Tensor, bias: Tensor, config: StageConfig, rng: np.random.Generator
) -> Tensor:
    """Loss of one batch, mixed or not: MixUp acts here and not in the network."""
    x, labels = member.represent(batch.frames, batch.masks), batch.labels
    if config.mixup > 0 and rng.random() < config.mixup:
        x, labels = mixup(x, labels, config.mixup_alpha, rng)
    return multitask_loss(*member.classify(x), labels, weights, bias)


def _set_rate(optimizer: torch.optim.Optimizer, config: StageConfig, progress: float) -> None:
    """Linear warm-up, then half a cosine to zero; `progress` runs from 0 to 1 over the stage."""
    if progress < config.warmup:
        factor = progress / config.warmup
    else:
        factor = 0.5 * (1.0 + np.cos(np.pi * (progress - config.warmup) / (1.0 - config.warmup)))
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * max(factor, 0.01)


def selection_score(member: DeepSER, encoders: Mapping[str, EncoderSpec], dev: Examples, bias: Tensor) -> float:
    """Macro-F1 on the WHOLE held-out set, averaged over balanced resamples; rows without consensus do not count."""
    rows = np.flatnonzero(dev.dominant >= 0)
    guesses = predict(member, encoders, dev.subset(rows), bias)[0].argmax(axis=1)
    return balanced_macro_f1(dev.dominant[rows], guesses, _SELECTION_RESAMPLES, seed=0)


@torch.no_grad()
def predict(
    member: DeepSER, encoders: Mapping[str, EncoderSpec], examples: Examples, bias: Tensor
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Posteriors `[N, 8]` and attributes `[N, 3]` of every example, in the examples' order."""
    member.eval()
    posterior = np.zeros((len(examples), len(bias)), np.float32)
    attributes = np.zeros((len(examples), examples.attributes.shape[1]), np.float32)
    lengths = np.array([len(frames) for frames in examples.frames[member.spec.modalities[0]]])
    order = np.argsort(lengths, kind="stable")
    inputs = {name: encoders[name] for name in member.spec.modalities}
    for start in range(0, len(order), _PREDICTION_BATCH):
        rows = order[start : start + _PREDICTION_BATCH]
        batch = make_batch(examples.subset(rows), inputs)
        logits, values = member(batch.frames, batch.masks)
        posterior[rows] = torch.softmax(logits + bias, dim=1).numpy()
        attributes[rows] = values.numpy()
    return posterior, attributes
