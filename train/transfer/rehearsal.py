"""Rehearsal: the source's own training clips beside the target's, so that what members knew is practised while they learn.

A member hears the target by the target's statistics. The source's frames are moved to where these put them as its own had:

    moved = (frames - mean) * scale / scale_t + mean_t

and what was standardised to one value is so again. Source: Robins (1995), "Catastrophic forgetting, rehearsal and
pseudorehearsal", Connection Science 7.

Shapes: F = frames, d = width of a frame.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from model.spec import MemberSpec
from train.dataset import Examples, HalfFrames, concatenate

Move = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""Factor and shift of a modality's frames, `[d]` each."""
Practise = Callable[[MemberSpec, npt.NDArray[np.int64], np.random.Generator], Examples]
"""Training clips of the source at some rows, as an epoch of the source's own training gives them to a member."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What is practised.

    Attributes:
        practise: gives clips of the source.
        known: clips that there are.
        clips: of them in each epoch.
        moves: member -> modality whose statistics were changed -> how its frames are moved.
    """

    practise: Practise
    known: int
    clips: int
    moves: Mapping[str, Mapping[str, Move]]

    def beside(self, learned: Examples, member: MemberSpec, rng: np.random.Generator) -> Examples:
        """An epoch of the target's examples, with clips of the source beside them and as often as makes them as many."""
        rows = rng.permutation(self.known)[: self.clips]
        practised = self.practise(member, rows, rng)
        frames = dict(practised.frames)
        for name, move in self.moves[member.name].items():
            frames[name] = [_moved(values, *move) for values in frames[name]]
        often = max(1, round(len(rows) / len(learned)))
        return concatenate([*[learned] * often, replace(practised, frames=frames)])


def _moved(frames: HalfFrames, factor: npt.NDArray[np.float32], shift: npt.NDArray[np.float32]) -> HalfFrames:
    return np.asarray(frames.astype(np.float32) * factor + shift, np.float16)


def moves_between(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Move]:
    """How frames are moved for a member whose statistics were exchanged, by modality.

    Args:
        before: its weights with the source's statistics.
        after: its weights with the target's.
    """
    found = {}
    for name in before:
        if not (name.startswith("stacks.") and name.endswith(".mean")):
            continue
        modality = name.split(".")[1]
        mean, scale, new_mean, new_scale = (
            weights[f"stacks.{modality}.{part}"].numpy() for weights in (before, after) for part in ("mean", "scale")
        )
        if not (np.array_equal(mean, new_mean) and np.array_equal(scale, new_scale)):
            factor = scale / new_scale
            found[modality] = factor, new_mean - mean * factor
    return found
