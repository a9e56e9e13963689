"""A made-up test set of eight speakers and three classes, and guesses that are right for a given share of it."""

from typing import Final

import numpy as np

from train.reference import ACTED, Guesses, Reference

CLIPS: Final = 240


def reference() -> Reference:
    """The truth about it; of the first ten clips nobody knows any."""
    truth = np.arange(CLIPS) % 3
    truth[:10] = -1
    return Reference(
        ids=tuple(map(str, range(CLIPS))),
        speakers=tuple(f"s{n % 8}" for n in range(CLIPS)),
        genders=("",) * CLIPS,
        truth=truth,
        kind=ACTED,
        votes=None,
        attributes=np.full((CLIPS, 3), np.nan),
    )


def guesses(right: float, seed: int = 0) -> Guesses:
    """Right for that share of the clips, and for those of lower shares' right ones too."""
    order = np.random.default_rng(seed).random(CLIPS)
    return np.where(order < right, np.arange(CLIPS) % 3, (np.arange(CLIPS) + 1) % 3).astype(np.int64)
