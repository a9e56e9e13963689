"""Evaluation on speakers that no stage has seen: the soup beside what it must beat.

Shapes: N = clips, M = members, 8 = classes in canonical order, 3 = attributes in canonical order.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model.labels import CLASSES
from train.analysis import abstaining, attribute_agreement, calibration_of, gender_gap, speaker_scores
from train.metrics import (
    Estimate,
    accuracy,
    class_f1_intervals,
    confusion,
    interval,
    jensen_shannon,
    macro_f1,
    micro_f1,
    paired_difference,
    soft_cross_entropy,
    unweighted_average_recall,
)
from train.reference import Guesses, Outputs, Reference

NONE: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Score:
    """One system on one set of clips.

    Attributes:
        uar: unweighted average recall against the truth.
        macro_f1: against the truth.
        micro_f1: against the truth.
        accuracy: against the truth.
        voted_uar: unweighted average recall against the dominant vote, rows without consensus left out; None where
            there is no vote beside the truth.
    """

    uar: Estimate
    macro_f1: Estimate
    micro_f1: Estimate
    accuracy: Estimate
    voted_uar: Estimate | None


def majority_vote(members: npt.NDArray[np.floating]) -> Guesses:
    """Class with most members' votes `[N, M, 8]`; a tie goes to the class with the higher mean probability."""
    votes = np.eye(len(CLASSES))[members.argmax(axis=2)].sum(axis=1)
    return np.asarray((votes + members.mean(axis=1) * 0.5).argmax(axis=1), np.int64)


def score(guesses: Guesses, reference: Reference) -> Score:
    """Scores guesses `[N]` against the truth, and against the dominant vote where there is one."""
    known, voted = np.flatnonzero(reference.truth >= 0), reference.voted
    rated = np.flatnonzero(voted >= 0) if voted is not None else np.zeros(0, np.int64)
    speakers = np.array(reference.speakers)
    truth, guessed, of = reference.truth[known], guesses[known], list(speakers[known])
    return Score(
        uar=interval(unweighted_average_recall, truth, guessed, of),
        macro_f1=interval(macro_f1, truth, guessed, of),
        micro_f1=interval(micro_f1, truth, guessed, of),
        accuracy=interval(accuracy, truth, guessed, of),
        voted_uar=interval(unweighted_average_recall, voted[rated], guesses[rated], list(speakers[rated]))
        if voted is not None and len(rated)
        else None,
    )


def compare_guesses(
    reference: Reference, systems: Mapping[str, Guesses], soup: str, alike: Mapping[str, str] = NONE
) -> dict[str, Any]:
    """What guesses alone tell, as plain data for JSON.

    Args:
        reference: what is held against the guesses.
        systems: name -> guesses `[N]`.
        soup: the name of the system that others are compared with.
        alike: system that hears the clips otherwise -> the name under which the soup hears them so: those two are compared.
    """
    known = np.flatnonzero(reference.truth >= 0)
    truth, speakers = reference.truth[known], [reference.speakers[row] for row in known]
    others = {name: guesses[known] for name, guesses in systems.items() if name != soup}
    mine = systems[soup][known]
    ours = {name: systems[alike.get(name, soup)][known] for name in others}
    return {
        "clips": len(reference.ids),
        "speakers": len(set(reference.speakers)),
        "reference": reference.kind,
        "without_reference": len(reference.ids) - len(known),
        "systems": {name: asdict(score(guesses, reference)) for name, guesses in systems.items()},
        "uar_gain_of_soup": {
            name: asdict(paired_difference(unweighted_average_recall, truth, ours[name], guesses, speakers))
            for name, guesses in others.items()
        },
        "macro_f1_gain_of_soup": {
            name: asdict(paired_difference(macro_f1, truth, ours[name], guesses, speakers))
            for name, guesses in others.items()
        },
        "class_f1": {name: asdict(found) for name, found in class_f1_intervals(truth, mine, speakers).items()},
        "confusion": confusion(truth, mine).tolist(),
        "compared_alike": dict(alike),
        "genders": gender_gap(reference, systems[soup]),
        "by_speaker": speaker_scores(reference, systems[soup]),
    }


def compare(
    reference: Reference,
    systems: Mapping[str, Guesses],
    soup: str,
    outputs: Outputs,
    alike: Mapping[str, str] = NONE,
) -> dict[str, Any]:
    """The evaluation as plain data for JSON; figures that the clips cannot give are None.

    Args:
        reference: what is held against the guesses.
        systems: name -> guesses `[N]`.
        soup: the name of the system that others are compared with.
        outputs: the soup's posteriors, with all that belongs to them.
        alike: as in `compare_guesses`.
    """
    known, votes = np.flatnonzero(reference.truth >= 0), reference.votes
    return compare_guesses(reference, systems, soup, alike) | {
        "soft_cross_entropy": None if votes is None else soft_cross_entropy(votes, outputs.posterior),
        "jensen_shannon": None if votes is None else jensen_shannon(votes, outputs.posterior),
        "attributes": attribute_agreement(reference, outputs),
        "calibration": calibration_of(reference, outputs, known),
        "selection": abstaining(reference.truth[known], outputs, known),
    }
