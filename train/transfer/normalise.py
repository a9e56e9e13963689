"""What an ensemble takes for usual, measured again on unlabelled audio: for calls that sound unlike the training data.

Two things know what the training data sounded like: each member standardises its frames by their mean and deviation, and
channels are adapted towards the mean functionals (`model.adaptation`). Both are moved to the target's. No weight changes.

Shapes: S = steps of the functionals, d = width of a frame.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from model.adaptation import FUNCTIONALS, Adaptation
from model.network.deepser import FrameStack
from model.network.member import Member
from model.spec import EncoderSpec
from train.dataset import HalfFrames
from train.stages.members import moments
from train.transfer.unlabelled import Unlabelled

SOURCE_COUNTS: Final = 20.0
"""Utterances that the source's statistics count for beside the target's: a handful of calls moves them part of the way."""


def reference_of(target: Unlabelled, source: Adaptation) -> Adaptation:
    """The adaptation with the target's mean functionals for its reference, each speaker counting alike.

    Calls of one speaker are not independent, so speakers are averaged and not utterances; the source's reference counts as
    `SOURCE_COUNTS` utterances beside all of the target's.
    """
    by_speaker: dict[str, list[HalfFrames]] = {}
    for speaker, functionals in zip(target.speakers, target.frames[FUNCTIONALS], strict=True):
        by_speaker.setdefault(speaker, []).append(functionals)
    means = [_mean(rows) for rows in by_speaker.values()]
    share = len(target) / (len(target) + SOURCE_COUNTS)
    reference = share * np.mean(means, axis=0) + (1.0 - share) * source.reference
    return Adaptation(reference.astype(np.float32), source.strength)


def _mean(rows: Sequence[HalfFrames]) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    found: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = np.mean([row.astype(np.float64) for row in rows], axis=0)
    return found


def normalised(member: Member, target: Unlabelled, encoders: Mapping[str, EncoderSpec]) -> dict[str, Tensor]:
    """The member's weights with the target's statistics in the place of its own, for every modality that hears audio.

    What is said is no channel: words keep their statistics.

    Args:
        member: left as it is.
        target: as the member hears it, adapted to its channels.
        encoders: by modality.
    """
    weights = {name: values.clone() for name, values in member.state_dict().items()}
    share = len(target) / (len(target) + SOURCE_COUNTS)
    for name, stack in member.stacks.items():
        rows = [frames for frames in target.frames[name] if len(frames)]
        if encoders[name].kind == "text-transformer" or not rows:
            continue
        assert isinstance(stack, FrameStack)
        mean, deviation = (torch.from_numpy(found) for found in moments(rows))
        moved = FrameStack(len(mean), stack.stack)
        own = 1.0 / stack.scale
        shift = (mean - stack.mean).square() * share * (1.0 - share)  # of a mixture of the two
        spread = (share * deviation.square() + (1.0 - share) * own.square() + shift).sqrt()
        moved.set_statistics(share * mean + (1.0 - share) * stack.mean, spread)
        weights[f"stacks.{name}.mean"], weights[f"stacks.{name}.scale"] = moved.mean, moved.scale
    return weights
