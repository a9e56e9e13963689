"""How members that were brought to a target are joined, where the target has too few speakers to train a meta-classifier on.

Shapes: N = examples, M = members.
"""

import copy
from collections.abc import Sequence

import torch

from model.labels import ATTRIBUTES, CLASSES
from model.network.checkpoint import TrainedFallback
from model.network.member import Member
from model.network.metaclassifier import WIDTH, MetaClassifier
from model.spec import Fallback
from train.config import Recipe
from train.history import History
from train.prepare import Prepared
from train.stacking import Stacked, calibrated, member_outputs
from train.stages.meta import HeldOut, columns_of

_SHARPNESS = 10.0
"""Logit of a class that all members are sure of; the temperature is fitted around it."""


def soft_vote(members: int) -> MetaClassifier:
    """The meta-classifier that takes the mean of the members' probabilities and attributes: nothing in it is trained.

    Its guesses are those of a soft vote; its posteriors are the softmax of the mean probabilities, sharpened by the
    temperature that is fitted behind it.
    """
    meta = MetaClassifier(members)
    with torch.no_grad():
        meta.linear.bias.zero_()
        meta.linear.weight.zero_()
        for member in range(members):
            for column in range(WIDTH):
                is_class = column < len(CLASSES)
                meta.linear.weight[column, member * WIDTH + column] = (_SHARPNESS if is_class else 1.0) / members
    assert len(CLASSES) + len(ATTRIBUTES) == WIDTH
    return meta.eval()


def joined(
    recipe: Recipe,
    prepared: Prepared,
    members: tuple[Member, ...],
    meta: MetaClassifier,
    trained_attributes: tuple[str, ...],
    fallbacks: Sequence[TrainedFallback] = (),
) -> Stacked:
    """An ensemble whose meta-classifier is given; calibration is fitted on the development clips.

    Args:
        recipe: of the members.
        prepared: holds the development clips.
        members: in the recipe's order.
        meta: the meta-classifier over all of them.
        trained_attributes: of the meta-classifier.
        fallbacks: smaller ensembles of these members whose meta-classifiers are given too; each is calibrated as the whole is.
    """
    training = prepared.training
    outputs = member_outputs(recipe, members, training.dev, training.trained_classes)
    calibration = calibrated(meta, HeldOut(outputs, training.dev), training.trained_classes)
    names, carried = [member.spec.name for member in members], []
    for given in fallbacks:
        columns = columns_of(given.spec.members, names)
        own = calibrated(given.meta, HeldOut(outputs[:, columns], training.dev), training.trained_classes)
        carried.append(TrainedFallback(Fallback(given.spec.members, own.temperature, own.abstain_below), given.meta))
    return Stacked(
        members=members,
        runs=(copy.deepcopy(meta),),  # a file holds no tensor under two names
        histories=(History(),),
        ingredients=(0,),
        soup=meta,
        temperature=calibration.temperature,
        abstain_below=calibration.abstain_below,
        prior_ratio=calibration.prior_ratio,
        trained_attributes=trained_attributes,
        fallbacks=tuple(carried),
    )
