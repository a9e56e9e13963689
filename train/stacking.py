"""Stages 3 and 4 on the members of a run, and the calibration of what they give.

Shapes: N = examples, M = members, 8 = classes in canonical order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from model.labels import ATTRIBUTES
from model.network.checkpoint import TrainedFallback
from model.network.member import Member
from model.network.metaclassifier import MetaClassifier
from model.spec import Fallback
from train.calibration import fit_prior_ratio
from train.config import Recipe
from train.dataset import concatenate
from train.history import History
from train.loop import class_bias, predict
from train.prepare import Prepared
from train.stages.members import ALL_SPEAKERS, draw_training, out_of_fold
from train.stages.meta import (
    HeldOut,
    StackingSet,
    columns_of,
    fit_temperature,
    meta_posterior,
    souped,
    stacked_outputs,
)
from train.transfer.start import Rows

ABSTAIN_QUANTILE: Final = 0.1
"""Share of held-out utterances, the least confident, on which the ensemble abstains."""


@dataclass(frozen=True, slots=True)
class Stacked:
    """A trained ensemble and its calibration.

    Attributes:
        members: trained on every training speaker.
        runs: the runs of stage 3.
        histories: what happened in each of them.
        ingredients: numbers of the runs that the soup is made of.
        soup: the mean of these, stage 4.
        temperature: divides the soup's logits.
        abstain_below: confidence under which the ensemble abstains.
        prior_ratio: class prior of the development speakers over the one that training taught, `[8]`; reported, not used.
        trained_attributes: attributes with a rating among the training clips.
        fallbacks: the same stages on fewer members, as the recipe orders them.
    """

    members: tuple[Member, ...]
    runs: tuple[MetaClassifier, ...]
    histories: tuple[History, ...]
    ingredients: tuple[int, ...]
    soup: MetaClassifier
    temperature: float
    abstain_below: float
    prior_ratio: npt.NDArray[np.float64]
    trained_attributes: tuple[str, ...]
    fallbacks: tuple[TrainedFallback, ...] = ()


def stack(recipe: Recipe, prepared: Prepared, members: Mapping[str, Mapping[int, Member]]) -> Stacked:
    """Stages 3 and 4, and calibration on the development speakers."""
    training, encoders = prepared.training, recipe.encoder_specs()
    full = tuple(folds[ALL_SPEAKERS] for folds in members.values())
    drawn = [
        draw_training(recipe, training, training.copies, np.random.default_rng([recipe.seed, draw]))
        for draw in range(recipe.meta.draws)
    ]
    outputs = torch.cat(
        [
            stacked_outputs(
                [
                    out_of_fold({f: m for f, m in folds.items() if f != ALL_SPEAKERS}, encoders, examples, training)
                    for folds in members.values()
                ]
            )
            for examples in drawn
        ]
    )
    together = concatenate(drawn)
    classes = training.trained_classes
    dev = HeldOut(member_outputs(recipe, full, training.dev, classes), training.dev)
    stacking = StackingSet(outputs, together, classes, recipe.objective.terms("deepser"))
    found = souped(stacking, recipe.meta, dev)
    calibration = calibrated(found.soup, dev, classes)
    ratings = training.train.attributes
    return Stacked(
        members=full,
        runs=found.runs,
        histories=found.histories,
        ingredients=found.ingredients,
        soup=found.soup,
        temperature=calibration.temperature,
        abstain_below=calibration.abstain_below,
        prior_ratio=calibration.prior_ratio,
        trained_attributes=tuple(
            name for column, name in enumerate(ATTRIBUTES) if not np.isnan(ratings[:, column]).all()
        ),
        fallbacks=tuple(_fallback(recipe, names, stacking, dev) for names in recipe.fallbacks),
    )


def _fallback(recipe: Recipe, names: tuple[str, ...], data: StackingSet, dev: HeldOut) -> TrainedFallback:
    """Stages 3 and 4 and calibration on the outputs of some members, as on those of all."""
    columns = columns_of(names, [member.name for member in recipe.members])
    held_out = replace(dev, outputs=dev.outputs[:, columns])
    mixed = souped(replace(data, outputs=data.outputs[:, columns]), recipe.meta, held_out).soup
    calibration = calibrated(mixed, held_out, data.trained_classes)
    return TrainedFallback(Fallback(names, calibration.temperature, calibration.abstain_below), mixed)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is fitted on held-out speakers: the fields of `Stacked` of the same names."""

    temperature: float
    abstain_below: float
    prior_ratio: npt.NDArray[np.float64]


def calibrated(meta: MetaClassifier, dev: HeldOut, classes: tuple[str, ...]) -> Calibration:
    """Temperature, abstention and prior of a meta-classifier, on held-out speakers."""
    bias = class_bias(classes)
    with torch.no_grad():
        temperature = fit_temperature(meta(dev.outputs)[0], dev.examples.targets, bias)
    posterior = meta_posterior(meta, dev.outputs, bias, temperature)
    return Calibration(
        temperature,
        float(np.quantile(posterior.max(axis=1), ABSTAIN_QUANTILE)),
        fit_prior_ratio(posterior, dev.examples.targets),
    )


def member_outputs(
    recipe: Recipe, members: tuple[Member, ...], examples: Rows, classes: tuple[str, ...]
) -> torch.Tensor:
    """The members' outputs on some examples as the meta-classifier reads them, `[N, 11 M]`."""
    encoders, bias = recipe.encoder_specs(), class_bias(classes)
    return stacked_outputs([predict(member, encoders, examples, bias) for member in members])
