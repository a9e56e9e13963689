"""What a report says beyond scores: attributes, calibration, abstaining, gaps between people. All as plain data.

Shapes: N = clips, K = clips with a truth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from train.calibration import calibration_error, error_auroc, log_losses, reliability, risk_coverage, soft_losses
from train.metrics import (
    accuracy,
    concordance,
    interval,
    macro_f1,
    speaker_bootstrap,
    unweighted_average_recall,
)
from train.reference import Guesses, Outputs, Posterior, Reference

_CURVE_POINTS: Final = 200
"""Points of a curve that is drawn: more cannot be seen."""


def attribute_agreement(reference: Reference, outputs: Outputs) -> dict[str, Any]:
    """CCC of each trained attribute, over the clips where it was rated."""
    found = {}
    for column, name in outputs.trained_columns:
        rated = ~np.isnan(reference.attributes[:, column])
        if rated.sum() < 2:
            continue
        truth, guess = reference.attributes[rated, column], outputs.attributes[rated, column]
        speakers = [speaker for speaker, known in zip(reference.speakers, rated, strict=True) if known]
        ccc = speaker_bootstrap(speakers, lambda rows, t=truth, g=guess: concordance(t[rows], g[rows]))  # type: ignore[misc]
        found[name] = {"clips": int(rated.sum()), "ccc": asdict(ccc)}
    return found


def calibration_of(reference: Reference, outputs: Outputs, known: Guesses) -> dict[str, Any]:
    """Calibration before and after the temperature, and under the corrected prior; a loss that falls is a gain.

    Two losses, because the two truths have priors of their own: acted clips are balanced, votes are not.

    Args:
        reference: the truth, and the votes if there are any.
        outputs: the posteriors.
        known: rows with a truth `[K]`.
    """
    truth, speakers = reference.truth[known], [reference.speakers[row] for row in known]
    whole = {
        "before": outputs.uncalibrated,
        "after": outputs.posterior,
        "prior_corrected": outputs.prior_corrected,
    }
    kinds = {name: posterior[known] for name, posterior in whole.items()}
    losses = {name: log_losses(truth, posterior) for name, posterior in kinds.items()}
    corrected = kinds["prior_corrected"].argmax(axis=1)
    found = {
        "ece": {name: calibration_error(truth, posterior) for name, posterior in kinds.items()},
        "log_loss": _changes(losses, speakers),
        "vote_loss": None,
        "prior_corrected": {
            "uar": asdict(interval(unweighted_average_recall, truth, corrected, speakers)),
            "macro_f1": asdict(interval(macro_f1, truth, corrected, speakers)),
            "accuracy": asdict(interval(accuracy, truth, corrected, speakers)),
        },
        "reliability": {name: _bins(truth, posterior) for name, posterior in kinds.items()},
    }
    if reference.votes is not None:
        votes = reference.votes
        by_vote = {name: soft_losses(votes, posterior) for name, posterior in whole.items()}
        found["vote_loss"] = _changes(by_vote, reference.speakers)
    return found


def _bins(truth: Guesses, posterior: Posterior) -> dict[str, list[float]]:
    return {name: list(values) for name, values in asdict(reliability(truth, posterior)).items()}


def _changes(losses: Mapping[str, npt.NDArray[np.float64]], speakers: Sequence[str]) -> dict[str, Any]:
    """Means of the losses, and what the temperature and the corrected prior change, clip by clip."""

    def change(first: str, second: str) -> dict[str, float]:
        gaps = losses[second] - losses[first]
        return asdict(speaker_bootstrap(speakers, lambda rows: float(gaps[rows].mean())))

    return {
        **{name: float(values.mean()) for name, values in losses.items()},
        "change": {"after": change("before", "after"), "prior_corrected": change("after", "prior_corrected")},
    }


def abstaining(truth: Guesses, outputs: Outputs, known: Guesses) -> dict[str, Any]:
    """What abstaining buys: risk and coverage at the threshold and along the whole curve."""
    posterior, doubt = outputs.posterior[known], outputs.disagreement[known]
    wrong, confidence = posterior.argmax(axis=1) != truth, posterior.max(axis=1)
    kept = confidence >= outputs.abstain_below
    found: dict[str, Any] = {
        "abstain_below": outputs.abstain_below,
        "coverage": float(kept.mean()),
        "risk": float(wrong[kept].mean()) if kept.any() else None,
        "risk_of_abstained": float(wrong[~kept].mean()) if not kept.all() else None,
        "risk_without_abstaining": float(wrong.mean()),
        "orders": {},
    }
    for name, scores in (("confidence", confidence), ("disagreement", -doubt)):
        curve, auroc = risk_coverage(scores, wrong), error_auroc(-scores, wrong)
        shown = np.unique(np.linspace(0, len(curve.coverage) - 1, _CURVE_POINTS).astype(np.int64))
        found["orders"][name] = {
            "area": curve.area,
            "error_auroc": None if np.isnan(auroc) else auroc,
            "coverage": curve.coverage[shown].tolist(),
            "risk": curve.risk[shown].tolist(),
        }
    return found


def gender_gap(reference: Reference, guesses: Guesses) -> dict[str, Any] | None:
    """UAR of each gender and the gap (female minus male); None where the corpus does not tell both."""
    gender = np.array(reference.genders)
    rows_of = {name: np.flatnonzero((gender == name) & (reference.truth >= 0)) for name in ("female", "male")}
    if not all(map(len, rows_of.values())):
        return None
    truth = reference.truth
    groups = {}
    for name, rows in rows_of.items():
        speakers = [reference.speakers[row] for row in rows]
        uar = interval(unweighted_average_recall, truth[rows], guesses[rows], speakers)
        groups[name] = {"clips": len(rows), "speakers": len(set(speakers)), "uar": asdict(uar)}

    def gap(rows: Guesses) -> float:
        parts = [rows[gender[told[rows]] == name] for name in rows_of]
        if not all(map(len, parts)):
            return float("nan")
        first, second = (unweighted_average_recall(truth[told[part]], guesses[told[part]]) for part in parts)
        return first - second

    told = np.sort(np.concatenate(list(rows_of.values())))
    groups["gap"] = asdict(speaker_bootstrap([reference.speakers[row] for row in told], gap))
    return groups


def speaker_scores(reference: Reference, guesses: Guesses) -> dict[str, Any]:
    """Clips, gender and UAR of every speaker that has a clip with a truth."""
    names, found = np.array(reference.speakers), {}
    for name in np.unique(names[reference.truth >= 0]):
        rows = np.flatnonzero((names == name) & (reference.truth >= 0))
        uar = unweighted_average_recall(reference.truth[rows], guesses[rows])
        found[str(name)] = {"clips": len(rows), "gender": reference.genders[rows[0]], "uar": uar}
    return found
