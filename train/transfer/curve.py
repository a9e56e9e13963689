"""The curve over budgets as figures: gains, gaps, intervals, of one division of a corpus or of several put together.

Shapes: N = test clips, 8 = classes in canonical order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from train.metrics import Estimate, speaker_bootstrap, unweighted_average_recall
from train.reference import Guesses, Reference, joined
from train.transfer.budgets import Budget
from train.transfer.fewshot_report import BEGUN, FINETUNED, SCRATCH
from train.transfer.source import UNTOUCHED

_QUIET: Final = 1e-9
"""A gap smaller than this is none, and nothing can close it."""


@dataclass(frozen=True, slots=True)
class Size:
    """What a budget has bought of one division: clips that train, clips that select, and the speakers of both."""

    clips: int
    validating: int
    speakers: int


@dataclass(frozen=True, slots=True)
class Spent:
    """One draw of one budget: what it bought, and what the two systems guess on the test clips, `[N]`.

    Attributes:
        sizes: one for each division that was put together.
        guesses: by system, where each speaker's clips are one call.
        otherwise: by way in which the clips are heard (`Prepared.otherwise`), then by system.
    """

    budget: Budget
    sizes: tuple[Size, ...]
    guesses: Mapping[str, Guesses]
    otherwise: Mapping[str, Mapping[str, Guesses]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Levels:
    """What guesses without a label, `[N]` each.

    Attributes:
        untouched: the source as it is served: all its members, and channels as it hears them.
        begun: the members that every budget begins with, which may have heard unlabelled audio, by a soft vote.
    """

    untouched: Guesses
    begun: Guesses


@dataclass(frozen=True, slots=True)
class Tried:
    """Every budget of a division of the corpus, or of several.

    Attributes:
        reference: the truth about N test clips.
        levels: what is reached without a label, where each speaker's clips are one call.
        otherwise: the same by way in which the clips are heard.
        spent: every draw of every budget.
    """

    reference: Reference
    levels: Levels
    otherwise: Mapping[str, Levels]
    spent: tuple[Spent, ...]

    def heard(self, way: str) -> "Tried":
        """The same with the clips heard in another way."""
        spent = tuple(replace(one, guesses=one.otherwise[way], otherwise={}) for one in self.spent)
        return Tried(self.reference, self.otherwise[way], {}, spent)


def put_together(tried: Sequence[Tried]) -> Tried:
    """Divisions that test on other clips each as one: draws of a number are one draw.

    Args:
        tried: the same budgets in the same order; ways in which only some were heard are left out.
    """
    ways = [way for way in tried[0].otherwise if all(way in one.otherwise for one in tried)]

    def levels(found: Sequence[Levels]) -> Levels:
        return Levels(_joined([one.untouched for one in found]), _joined([one.begun for one in found]))

    spent = []
    for alike in zip(*(one.spent for one in tried), strict=True):
        systems = alike[0].guesses
        spent.append(
            Spent(
                alike[0].budget,
                tuple(size for one in alike for size in one.sizes),
                {system: _joined([one.guesses[system] for one in alike]) for system in systems},
                {
                    way: {system: _joined([one.otherwise[way][system] for one in alike]) for system in systems}
                    for way in ways
                },
            )
        )
    return Tried(
        reference=joined([one.reference for one in tried]),
        levels=levels([one.levels for one in tried]),
        otherwise={way: levels([one.otherwise[way] for one in tried]) for way in ways},
        spent=tuple(spent),
    )


def _joined(guesses: Sequence[Guesses]) -> Guesses:
    return np.concatenate(guesses)


def compare_budgets(tried: Tried, shares: Sequence[float]) -> dict[str, Any]:
    """The curve as plain data for JSON: UAR of every budget, mean over its draws, with intervals by speakers.

    Args:
        tried: every draw of every budget.
        shares: the budgets, rising; 1 is full training, and without it there is no gap to close.
    """
    reference, levels, spent = tried.reference, tried.levels, tried.spent
    known = np.flatnonzero(reference.truth >= 0)
    truth, speakers = reference.truth[known], [reference.speakers[row] for row in known]

    def score(rows: npt.NDArray[np.int64], guesses: Sequence[Guesses]) -> float:
        """Mean UAR over draws."""
        return float(np.mean([unweighted_average_recall(truth[rows], found[known][rows]) for found in guesses]))

    def estimate(statistic: Callable[[npt.NDArray[np.int64]], float]) -> dict[str, float] | None:
        """The statistic with its interval; None where it does not exist."""
        found: Estimate = speaker_bootstrap(speakers, statistic)
        return None if np.isnan([found.value, found.low, found.high]).any() else asdict(found)

    def drawn(share: float, system: str) -> list[Guesses]:
        return [one.guesses[system] for one in spent if one.budget.share == share]

    def mean(guesses: Sequence[Guesses]) -> dict[str, float] | None:
        return estimate(lambda rows: score(rows, guesses))

    def gain(guesses: Sequence[Guesses], over: Sequence[Guesses]) -> dict[str, float] | None:
        return estimate(lambda rows: score(rows, guesses) - score(rows, over))

    def gap_closed(
        guesses: Sequence[Guesses], begin: Sequence[Guesses], full: Sequence[Guesses]
    ) -> dict[str, float] | None:
        all_of_it = gain(full, begin) if shares[-1] == 1 else None
        if all_of_it is None or all_of_it["low"] <= 0:  # no gap that can be told from none
            return None
        return estimate(lambda rows: closed(score(rows, begin), score(rows, guesses), score(rows, full)))

    begun, untouched = [levels.begun], [levels.untouched]
    full = {system: drawn(shares[-1], system) for system in (FINETUNED, SCRATCH)}
    everything = np.arange(len(known))
    rows = []
    for share in shares:
        sizes = [size for one in spent if one.budget.share == share for size in one.sizes]
        mine = {system: drawn(share, system) for system in (FINETUNED, SCRATCH)}
        rows.append(
            {
                "share": share,
                "clips": [size.clips for size in sizes],
                "validating": [size.validating for size in sizes],
                "speakers": [size.speakers for size in sizes],
                "systems": {
                    system: {
                        "uar": mean(guesses),
                        "by_draw": [score(everything, [one]) for one in guesses],
                        "gain_over_begun": gain(guesses, begun),
                    }
                    for system, guesses in mine.items()
                },
                "finetuned_over_scratch": gain(mine[FINETUNED], mine[SCRATCH]),
                "gap_closed": {system: gap_closed(mine[FINETUNED], begun, reached) for system, reached in full.items()},
                "gap_closed_from_untouched": gap_closed(mine[FINETUNED], untouched, full[FINETUNED]),
            }
        )
    return {
        UNTOUCHED: {"uar": mean(untouched)},
        BEGUN: {"uar": mean(begun), "gain_over_untouched": gain(begun, untouched)},
        "budgets": rows,
    }


def of_turn(name: str, tried: Tried, shares: Sequence[float]) -> dict[str, Any]:
    """One division in a line: UAR, means over draws, without intervals.

    Args:
        name: of the division.
        tried: its budgets.
        shares: as in `compare_budgets`.
    """
    known = np.flatnonzero(tried.reference.truth >= 0)
    truth = tried.reference.truth[known]

    def score(guesses: Sequence[Guesses]) -> float:
        return float(np.mean([unweighted_average_recall(truth, found[known]) for found in guesses]))

    return {
        "name": name,
        "clips": len(known),
        "speakers": len(set(tried.reference.speakers)),
        UNTOUCHED: score([tried.levels.untouched]),
        BEGUN: score([tried.levels.begun]),
        FINETUNED: [score([one.guesses[FINETUNED] for one in tried.spent if one.budget.share == s]) for s in shares],
    }


def closed(begun: float, reached: float, full: float) -> float:
    """Share of the gap from a level to full training that is closed; NaN where full training is no better."""
    gap = full - begun
    return (reached - begun) / gap if gap > _QUIET else float("nan")
