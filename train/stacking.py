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
from train.dataset import Examples, concatenate
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
        prior_ratio: class prior of the development speakers over the one that training taught, `[8]`; stored, not applied.
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
    dev, stacking = dev_outputs(recipe, prepared, members), stacking_set(recipe, prepared, members)
    found = souped(stacking, recipe.meta, dev)
    calibration = calibrated(found.soup, dev, stacking.trained_classes)
    return Stacked(
        members=_on_all_speakers(members),
        runs=found.runs,
        histories=found.histories,
        ingredients=found.ingredients,
        soup=found.soup,
        temperature=calibration.temperature,
        abstain_below=calibration.abstain_below,
        prior_ratio=calibration.prior_ratio,
        trained_attributes=rated_attributes(prepared.training.train),
        fallbacks=tuple(_fallback(recipe, names, stacking, dev) for names in recipe.fallbacks),
    )


def stacking_set(recipe: Recipe, prepared: Prepared, members: Mapping[str, Mapping[int, Member]]) -> StackingSet:
    """What stage 3 is trained on: all training clips as often as the recipe draws them, one draw after the other."""
    training, encoders = prepared.training, recipe.encoder_specs()
    without = [{f: member for f, member in folds.items() if f != ALL_SPEAKERS} for folds in members.values()]
    drawn = [
        draw_training(recipe, training, training.copies, np.random.default_rng([recipe.seed, draw]))
        for draw in range(recipe.meta.draws)
    ]
    outputs = [
        stacked_outputs([out_of_fold(folds, encoders, examples, training) for folds in without]) for examples in drawn
    ]
    terms = recipe.objective.terms("deepser")
    return StackingSet(torch.cat(outputs), concatenate(drawn), training.trained_classes, terms)


def dev_outputs(recipe: Recipe, prepared: Prepared, members: Mapping[str, Mapping[int, Member]]) -> HeldOut:
    """The development clips, and what the members that heard all training speakers say about them."""
    training = prepared.training
    outputs = member_outputs(recipe, _on_all_speakers(members), training.dev, training.trained_classes)
    return HeldOut(outputs, training.dev)


def rated_attributes(examples: Examples) -> tuple[str, ...]:
    """Attributes that at least one of the clips was rated for."""
    rated = np.asarray(~np.isnan(examples.attributes).all(axis=0))
    return tuple(name for column, name in enumerate(ATTRIBUTES) if rated[column])


def _on_all_speakers(members: Mapping[str, Mapping[int, Member]]) -> tuple[Member, ...]:
    return tuple(folds[ALL_SPEAKERS] for folds in members.values())


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
