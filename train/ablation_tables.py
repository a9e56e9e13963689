"""Both tables of `train.ablate` from guesses: macro-F1 with intervals, and changes paired over speakers, as plain data.

Shapes: N = clips, M = members.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from train.ablations import ABLATIONS
from train.metrics import Labels, interval, macro_f1, paired_difference, speaker_bootstrap
from train.reference import Guesses, Reference

FULL: Final = "full recipe"
MAJORITY: Final = "majority voting"
SOFT: Final = "soft voting"
SINGLE: Final = "single meta-classifier"
SOUP: Final = "soup"


def members_table(
    reference: Reference, full: Mapping[str, Guesses], changed: Mapping[str, Mapping[str, Guesses]]
) -> dict[str, Any]:
    """Members with one thing taken away: mean macro-F1 over the members, and its change, paired over speakers.

    Args:
        reference: what guesses are held against.
        full: member -> guesses `[N]` of the full recipe.
        changed: ablation -> member -> guesses `[N]`; an ablation may leave members out, and is then held against the others,
            or be left out: its figures are None.
    """
    truth, speakers, known = known_rows(reference)
    rows: dict[str, Any] = {
        FULL: {
            "macro_f1": asdict(interval(mean_macro_f1, truth, _columns(full, known), speakers)),
            "by_member": {name: macro_f1(truth, guess[known]) for name, guess in full.items()},
        }
    }
    for ablation in ABLATIONS:
        if ablation.name not in changed:
            nothing = dict.fromkeys(("macro_f1", "change", "relative_change"))
            rows[ablation.name] = {"paper": ablation.paper, **nothing, "by_member": {}}
            continue
        without = changed[ablation.name]
        now, before = _columns(without, known), _columns({name: full[name] for name in without}, known)
        rows[ablation.name] = {
            "paper": ablation.paper,
            "macro_f1": asdict(interval(mean_macro_f1, truth, now, speakers)),
            "change": asdict(paired_difference(mean_macro_f1, truth, now, before, speakers)),
            "relative_change": _relative_change(truth, now, before, speakers),
            "by_member": {name: macro_f1(truth, guess[known]) for name, guess in without.items()},
        }
    return rows


def _relative_change(truth: Labels, now: Labels, before: Labels, speakers: Sequence[str]) -> dict[str, float] | None:
    """Change of the mean macro-F1 as a share of what it was; None where it was 0."""

    def change(rows: Labels) -> float:
        was = mean_macro_f1(truth[rows], before[rows])
        return mean_macro_f1(truth[rows], now[rows]) / was - 1.0 if was > 0 else float("nan")

    found = speaker_bootstrap(speakers, change)
    return None if np.isnan(found.value) else asdict(found)


def ensembles_table(
    reference: Reference, joined: Mapping[tuple[str, ...], Mapping[str, Guesses]]
) -> list[dict[str, Any]]:
    """Ways to join members, for every size: macro-F1, and its difference from the soup of all, paired over speakers."""
    truth, speakers, known = known_rows(reference)
    soup = next(iter(joined.values()))[SOUP][known]
    table = []
    for names, systems in joined.items():
        rows = {}
        for system, guess in systems.items():
            rows[system] = {
                "macro_f1": asdict(interval(macro_f1, truth, guess[known], speakers)),
                "change": asdict(paired_difference(macro_f1, truth, guess[known], soup, speakers)),
            }
        table.append({"members": list(names), "systems": rows})
    return table


def mean_macro_f1(truth: Labels, guesses: Labels) -> float:
    """Mean over M members of their macro-F1, of guesses `[N, M]`."""
    return float(np.mean([macro_f1(truth, column) for column in guesses.T]))


def known_rows(reference: Reference) -> tuple[Labels, list[str], npt.NDArray[np.int64]]:
    """Truth and speakers of the clips that have a truth, and their rows."""
    known = np.flatnonzero(reference.truth >= 0)
    return reference.truth[known], [reference.speakers[row] for row in known], known


def _columns(guesses: Mapping[str, Guesses], known: npt.NDArray[np.int64]) -> Labels:
    return np.stack([guess[known] for guess in guesses.values()], axis=1)
