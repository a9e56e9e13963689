"""Stages 3 and 4 on the members of a run, and the calibration of what they give.

Shapes: N = examples, M = members, 8 = classes in canonical order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from model.labels import ATTRIBUTES
from model.network.member import Member
from model.network.metaclassifier import MetaClassifier
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
    fit_temperature,
    greedy_ingredients,
    meta_posterior,
    soup,
    stacked_outputs,
    train_meta,
)

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
    bias, dev_outputs = class_bias(classes), member_outputs(recipe, full, training.dev, classes)
    dev = HeldOut(dev_outputs, training.dev)
    stacking = StackingSet(outputs, together, classes, recipe.objective.terms("deepser"))
    trained = [train_meta(stacking, recipe.meta, seed, dev) for seed in recipe.meta.seeds]
    runs = tuple(run for run, _ in trained)
    greedy = recipe.meta.soup == "greedy"
    ingredients = greedy_ingredients(runs, dev, bias) if greedy else tuple(range(len(runs)))
    mixed = soup([runs[number] for number in ingredients])
    with torch.no_grad():
        temperature = fit_temperature(mixed(dev_outputs)[0], training.dev.targets, bias)
    posterior = meta_posterior(mixed, dev_outputs, bias, temperature)
    ratings = training.train.attributes
    return Stacked(
        members=full,
        runs=runs,
        histories=tuple(history for _, history in trained),
        ingredients=ingredients,
        soup=mixed,
        temperature=temperature,
        abstain_below=float(np.quantile(posterior.max(axis=1), ABSTAIN_QUANTILE)),
        prior_ratio=fit_prior_ratio(posterior, training.dev.targets),
        trained_attributes=tuple(
            name for column, name in enumerate(ATTRIBUTES) if not np.isnan(ratings[:, column]).all()
        ),
    )


def member_outputs(
    recipe: Recipe, members: tuple[Member, ...], examples: Examples, classes: tuple[str, ...]
) -> torch.Tensor:
    """The members' outputs on some examples as the meta-classifier reads them, `[N, 11 M]`."""
    encoders, bias = recipe.encoder_specs(), class_bias(classes)
    return stacked_outputs([predict(member, encoders, examples, bias) for member in members])
