"""How members that were brought to a target are joined, where the target has too few speakers to train a meta-classifier on.

Shapes: N = examples, M = members.
"""

import copy

import torch

from model.labels import ATTRIBUTES, CLASSES
from model.network.member import Member
from model.network.metaclassifier import WIDTH, MetaClassifier
from train.config import Recipe
from train.history import History
from train.prepare import Prepared
from train.stacking import Stacked, calibrated, member_outputs
from train.stages.meta import HeldOut

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
) -> Stacked:
    """An ensemble whose meta-classifier is given; calibration is fitted on the development clips."""
    training = prepared.training
    outputs = member_outputs(recipe, members, training.dev, training.trained_classes)
    calibration = calibrated(meta, HeldOut(outputs, training.dev), training.trained_classes)
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
    )
