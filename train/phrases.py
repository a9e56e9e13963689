"""Sentences about results that the page and the model card share.

They take evaluations as `train.evaluate.compare` makes them.
"""

from collections.abc import Mapping
from typing import Any

from model.labels import CLASS_INDEX, CLASSES

BY_FOLDS = "by_folds"
"""Key of an evaluation of the training speakers, fold by fold: not of the ensemble that ships."""

STORING = (
    "The prior correction is stored and not applied: which classes are frequent where the model will run is not known "
    "here. A bundle's manifest carries the log ratios; whoever expects the development speakers' prior multiplies each "
    "probability by the exponential of its class' and divides by their sum."
)


def estimate(value: Mapping[str, float] | None) -> str:
    """A value with its 95 % interval, as text."""
    if value is None:
        return "-"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def percent(share: float) -> str:
    """A share of labels, as exactly as it was asked for: "12.5%"."""
    return f"{100 * share:g}%"


def signed(value: Mapping[str, float] | None) -> str:
    """A difference with its 95 % interval, as text."""
    return "-" if value is None else f"{value['value']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def whose(found: Mapping[str, Any]) -> str:
    """Whose clips an evaluation is of, and what those who judged them knew."""
    if found.get(BY_FOLDS):
        return f"{found['speakers']} training speakers, each judged by an ensemble whose members never heard him"
    return f"{found['speakers']} speakers that no stage saw"


def tested_on(found: Mapping[str, Any]) -> str:
    """Which clips a comparison's table is of."""
    return f"{found['clips']} clips of {whose(found)}, held against the {found['reference']}."


def built_on(part: Mapping[str, str]) -> str:
    """Whose weights the ensemble reads, and under which licence."""
    licence = part["licence"] or "licence not stated in the recipe"
    return f"Built on {part['revision'] or part['name']}: {licence}."


def verdict(evaluation: Mapping[str, Any]) -> str:
    """Plainly, whether the soup is better than each other system: only an interval that leaves out 0 decides."""
    better: list[str] = []
    worse: list[str] = []
    even: list[str] = []
    for system, gain in evaluation["uar_gain_of_soup"].items():
        (better if gain["low"] > 0 else worse if gain["high"] < 0 else even).append(system)
    groups = (("better than", better), ("worse than", worse), ("not distinguishable from", even))
    return "The soup is " + "; ".join(f"{words} {', '.join(names)}" for words, names in groups if names) + "."


def alike(evaluation: Mapping[str, Any]) -> str:
    """What gains over systems that hear the clips otherwise are; "" where there are none."""
    told = " Over a system that hears the clips otherwise, the soup hears them so too."
    return told if evaluation.get("compared_alike") else ""  # reports from before do not tell


def weakest(evaluation: Mapping[str, Any]) -> str:
    """The class with the lowest F1, and what its clips are most often taken for."""
    name, found = min(evaluation["class_f1"].items(), key=lambda item: float(item[1]["value"]))
    row = evaluation["confusion"][CLASS_INDEX[name]]
    count, taken = max((count, other) for other, count in zip(CLASSES, row, strict=True) if other != name)
    mistaken = f"; {count} of its {sum(row)} clips are taken for {taken}" if count else ""
    return f"Weakest class: {name}, F1 {estimate(found)}{mistaken}."


def calibrated_on(found: Mapping[str, Any]) -> str:
    """Whose clips temperature and threshold are fitted to."""
    if found.get("held_out", True):  # reports from before do not tell
        return f"{found['clips']} clips of {found['speakers']} development speakers"
    return f"what members made of {found['clips']} clips of {found['speakers']} speakers before they learned them"


def calibration(evaluation: Mapping[str, Any]) -> str:
    """Whether the temperature improves the posteriors: intervals decide."""
    found = evaluation["calibration"]
    ece = found["ece"]
    return (
        f"The temperature {_changed(found['log_loss']['change']['after'])} against the {evaluation['reference']}; "
        f"ECE {ece['before']:.3f} before, {ece['after']:.3f} after."
    )


def prior(evaluation: Mapping[str, Any]) -> str:
    """Whether the corrected prior improves on the temperature alone, against the truth and against the votes."""
    found = evaluation["calibration"]
    change = _changed(found["log_loss"]["change"]["prior_corrected"])
    words = (
        f"The class prior of the development speakers' targets, reported and not used, {change} "
        f"against the {evaluation['reference']} (ECE {found['ece']['prior_corrected']:.3f})"
    )
    if found["vote_loss"] is None:
        return words + "."
    return f"{words}, and {_changed(found['vote_loss']['change']['prior_corrected'])} against the annotators' votes."


def _changed(change: Mapping[str, float]) -> str:
    shown = f"({change['value']:+.3f} nats [{change['low']:+.3f}, {change['high']:+.3f}])"
    if change["high"] < 0:
        return f"improves the log loss {shown}"
    return (
        f"worsens the log loss {shown}" if change["low"] > 0 else f"makes no clear difference to the log loss {shown}"
    )


def abstaining(evaluation: Mapping[str, Any]) -> str:
    """What abstaining below the threshold buys."""
    found = evaluation["selection"]
    start = (
        f"Below a confidence of {found['abstain_below']:.2f} the ensemble abstains: it keeps {found['coverage']:.0%} of "
        "the clips"
    )
    if found["risk"] is None or found["risk_of_abstained"] is None:
        return f"{start}, and errs on {found['risk_without_abstaining']:.0%} of all."
    return (
        f"{start} and errs on {found['risk']:.0%} of those, against {found['risk_without_abstaining']:.0%} of all and "
        f"{found['risk_of_abstained']:.0%} of the ones it leaves out."
    )


def by_speaker(evaluation: Mapping[str, Any]) -> str:
    """How far the soup's UAR differs from speaker to speaker."""
    ranked = sorted((score["uar"], name) for name, score in evaluation["by_speaker"].items())
    (low, first), (high, last), middle = ranked[0], ranked[-1], ranked[len(ranked) // 2][0]
    return f"UAR of the soup on each speaker: lowest {low:.2f} ({first}), median {middle:.2f}, highest {high:.2f} ({last})."


def telling_errors(evaluation: Mapping[str, Any]) -> str:
    """How well confidence and disagreement tell wrong guesses from right ones."""
    orders = evaluation["selection"]["orders"]
    shown = [f"{name} {order['error_auroc']:.2f}" for name, order in orders.items() if order["error_auroc"] is not None]
    return f"Telling wrong guesses from right ones (AUROC, 0.5 is chance): {', '.join(shown)}." if shown else ""
