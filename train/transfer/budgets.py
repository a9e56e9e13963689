"""Few labels: which clips of a target's labelled pool a budget buys, and which of these may select.

Budgets of one draw are nested: what 10 % buys is part of what 20 % buys. A user with a budget has labelled nothing else, so
speakers that validate come out of the budget too, and what the full corpus would have selected with stays unseen.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from model.labels import CLASSES
from train.errors import RecipeError
from train.manifest import Clip, Manifest, Split, assert_disjoint, dominant, dominant_class

Unit = Literal["speakers", "clips"]
UNITS: Final[tuple[Unit, ...]] = ("speakers", "clips")
SPEAKERS_TO_HOLD_OUT: Final = 5
"""Bought speakers from which on some of them validate."""


@dataclass(frozen=True, slots=True)
class Budget:
    """One draw of a budget.

    Attributes:
        share: of the labelled pool, above 0, at most 1.
        draw: number of the draw.
        unit: what is counted.
        validation: share of the bought speakers that select.

    Raises:
        RecipeError: if the share is none.
    """

    share: float
    draw: int
    unit: Unit = "speakers"
    validation: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise RecipeError(f"a budget is a share above 0 and at most 1 of the labelled clips, got {self.share:g}")
        if self.unit not in UNITS:
            raise RecipeError(f"a budget counts {' or '.join(UNITS)}, got {self.unit!r}")

    def __str__(self) -> str:
        """As the options of a command."""
        return f"--budget {self.share:g} --unit {self.unit} --draw {self.draw}"

    @property
    def name(self) -> str:
        """For folders and progress bars."""
        return f"{100 * self.share:g}-percent-of-{self.unit}-draw-{self.draw}"

    def narrow(self, split: Split, intended_votes: float) -> Split:
        """The split as a user with this budget has it; the test part is the same for every budget.

        Of five bought speakers and more, some validate: of those who have a clip with a class, and not all of these. Of fewer,
        whatever was held out would be missed more than it could choose: every clip trains, the same ones stand as the
        development part, and nothing may be selected by them.

        Args:
            split: the whole corpus.
            intended_votes: how many annotators the actor counts for.

        Raises:
            LeakageError: if a speaker of the budget is tested on.
        """
        bought = Manifest(tuple(self.bought([*split.train.clips, *split.dev.clips])))
        if not split.allow_overlap:
            assert_disjoint({"budget": bought, "test": split.test})
        speakers = self._speakers(bought.clips)
        decided = {clip.speaker for clip in bought.clips if dominant_class(clip, intended_votes) is not None}
        judging = [name for name in speakers if name in decided]
        if len(speakers) < SPEAKERS_TO_HOLD_OUT or len(judging) < 2:
            train = Manifest(bought.clips, split.train.dropped)
            return Split(train, bought, split.test, allow_overlap=True)
        held = judging[-min(max(1, round(self.validation * len(speakers))), len(judging) - 1) :]
        train = Manifest(bought.of_speakers(set(speakers) - set(held)).clips, split.train.dropped)
        return Split(train, bought.of_speakers(held), split.test, split.allow_overlap)

    def bought(self, pool: Sequence[Clip]) -> list[Clip]:
        """The clips of the pool that the budget buys, in the pool's order."""
        if self.unit == "speakers":
            order = self._speakers(pool)
            chosen = set(order[: max(1, round(self.share * len(order)))])
            return [clip for clip in pool if clip.speaker in chosen]
        ids: set[str] = set()
        for clips in _by_class(pool).values():
            ranked = sorted(clips, key=lambda clip: self._rank(clip.id))
            ids |= {clip.id for clip in ranked[: max(1, round(self.share * len(ranked)))]}
        return [clip for clip in pool if clip.id in ids]

    def _speakers(self, pool: Sequence[Clip]) -> list[str]:
        """Speakers in the order in which they are bought: at random, but classes that are still missing come first."""
        classes: dict[str, set[int]] = {}
        for clip in pool:
            classes.setdefault(clip.speaker, set()).add(_class_of(clip))
        waiting, order, seen = sorted(classes, key=self._rank), [], set[int]()
        while waiting:
            best = max(waiting, key=lambda speaker: len(classes[speaker] - seen))  # of equal ones, the first
            waiting.remove(best)
            order.append(best)
            seen |= classes[best]
        return order

    def _rank(self, name: str) -> str:
        return hashlib.sha256(f"{self.draw}:{name}".encode()).hexdigest()


def _class_of(clip: Clip) -> int:
    """Index of the clip's class, -1 without consensus."""
    if clip.label is not None:
        return CLASSES.index(clip.label)
    found = dominant(np.array(clip.votes))
    return -1 if found is None else found


def _by_class(clips: Iterable[Clip]) -> dict[int, list[Clip]]:
    found: dict[int, list[Clip]] = {}
    for clip in clips:
        found.setdefault(_class_of(clip), []).append(clip)
    return found
