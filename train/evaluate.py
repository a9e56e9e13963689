"""Evaluation on speakers that no stage has seen: the soup beside what it must beat."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from model.labels import CLASSES
from train.dataset import FUNCTIONALS, TEXT, Examples
from train.metrics import (
    Estimate,
    accuracy,
    calibration_error,
    class_f1,
    confusion,
    interval,
    jensen_shannon,
    macro_f1,
    paired_difference,
    soft_cross_entropy,
    unweighted_average_recall,
)

Posterior = npt.NDArray[np.floating]
Guesses = npt.NDArray[np.int64]

_PROBE_STRENGTH = 0.01
"""Inverse regularisation of the probe, the best of 0.001, 0.01, 0.1 on development speakers."""


@dataclass(frozen=True, slots=True)
class Score:
    """One system on one set of clips.

    Attributes:
        uar: unweighted average recall against the intended class.
        macro_f1: against the intended class.
        accuracy: against the intended class.
        voted_uar: unweighted average recall against the dominant vote, rows without consensus left out.
    """

    uar: Estimate
    macro_f1: Estimate
    accuracy: Estimate
    voted_uar: Estimate | None


def pooled(examples: Examples, modalities: Sequence[str]) -> npt.NDArray[np.float32]:
    """Mean and standard deviation over time of each modality, joined: `float32 [N, 2 d]`."""
    rows = []
    for frames in zip(*(examples.frames[name] for name in modalities), strict=True):
        full = [values.astype(np.float32) for values in frames]
        rows.append(np.concatenate([part for x in full for part in (x.mean(axis=0), x.std(axis=0))]))
    return np.stack(rows)


def probe_guesses(train: Examples, test: Examples) -> Guesses:
    """The linear probe: logistic regression on the pooled frames of every audio encoder, trained on intended classes."""
    modalities = [name for name in train.frames if name not in (TEXT, FUNCTIONALS)]
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=_PROBE_STRENGTH, max_iter=500))
    probe.fit(pooled(train, modalities), train.intended)
    return np.asarray(probe.predict(pooled(test, modalities)), np.int64)


def majority_vote(members: npt.NDArray[np.floating]) -> Guesses:
    """Class with most members' votes `[N, M, 8]`; a tie goes to the class with the higher mean probability."""
    votes = np.eye(len(CLASSES))[members.argmax(axis=2)].sum(axis=1)
    return np.asarray((votes + members.mean(axis=1) * 0.5).argmax(axis=1), np.int64)


def score(guesses: Guesses, test: Examples, voted: Guesses | None) -> Score:
    """Scores guesses against the intended class, and against the dominant vote where there is one."""
    rated = np.flatnonzero(voted >= 0) if voted is not None else np.zeros(0, np.int64)
    speakers = np.array(test.speakers)
    return Score(
        uar=interval(unweighted_average_recall, test.intended, guesses, test.speakers),
        macro_f1=interval(macro_f1, test.intended, guesses, test.speakers),
        accuracy=interval(accuracy, test.intended, guesses, test.speakers),
        voted_uar=interval(unweighted_average_recall, voted[rated], guesses[rated], list(speakers[rated]))
        if voted is not None and len(rated)
        else None,
    )


def compare(
    test: Examples, voted: Guesses, systems: Mapping[str, Guesses], soup: str, posterior: Posterior, votes: Posterior
) -> dict[str, Any]:
    """The evaluation as plain data for JSON.

    Args:
        test: the clips.
        voted: dominant vote per clip, -1 without consensus.
        systems: name -> guesses.
        soup: the name of the system that others are compared with.
        posterior: the soup's posteriors `[N, 8]`.
        votes: annotators' vote vectors `[N, 8]`, rows sum to 1.
    """
    against = {
        name: asdict(paired_difference(unweighted_average_recall, test.intended, systems[soup], guesses, test.speakers))
        for name, guesses in systems.items()
        if name != soup
    }
    return {
        "clips": len(test),
        "speakers": len(set(test.speakers)),
        "systems": {name: asdict(score(guesses, test, voted)) for name, guesses in systems.items()},
        "uar_gain_of_soup": against,
        "class_f1": class_f1(test.intended, systems[soup]),
        "confusion": confusion(test.intended, systems[soup]).tolist(),
        "soft_cross_entropy": soft_cross_entropy(votes, posterior),
        "jensen_shannon": jensen_shannon(votes, posterior),
        "ece_intended": calibration_error(test.intended, posterior),
    }
