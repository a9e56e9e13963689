"""Two finished runs on the clips that both were tested on: whether one is better, by a paired bootstrap over speakers.

It reads the tables of predictions that runs leave (`train.predictions`), so it trains and extracts nothing.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.errors import RunError
from train.metrics import Estimate, interval, macro_f1, paired_difference, unweighted_average_recall
from train.predictions import FOLD, FOLDER, read_predictions

_METRICS = {"UAR": unweighted_average_recall, "macro-F1": macro_f1}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric on one test set.

    Attributes:
        test: name of the test set's table.
        metric: "UAR" or "macro-F1".
        clips: with a truth, in both runs.
        speakers: who says them.
        first: of the first run, with its interval.
        second: of the second run.
        gain: second minus first, on the same clips; real where its interval leaves out 0.
    """

    test: str
    metric: str
    clips: int
    speakers: int
    first: Estimate
    second: Estimate
    gain: Estimate


def compare_runs(first: Path, second: Path) -> list[Comparison]:
    """Both metrics on every test set that both runs have, and on their training speakers if they have the same folds of them.

    Raises:
        RunError: if a folder is no finished run, the two share no test set, or they were tested on other clips.
    """
    tables = {run: _tables(run) for run in (first, second)}
    both = [name for name in tables[first] if name in tables[second]]
    shared = [name for name in both if _alike(tables[first][name], tables[second][name])]
    if not shared:
        raise RunError(
            f"{first} and {second} share no test set: the first has {', '.join(tables[first])}, "
            f"the second {', '.join(tables[second])}"
        )
    return [found for name in shared for found in _compared(name, tables[first][name], tables[second][name])]


def _tables(run: Path) -> dict[str, Path]:
    found = {path.stem: path for path in sorted((run / FOLDER).glob("*.csv"))}
    if not found:
        raise RunError(f"{run} holds no predictions: medusa-train run leaves them in {FOLDER}/ once it is done")
    return found


def _alike(first: Path, second: Path) -> bool:
    """Whether two tables are worth a comparison: of training speakers, only the same clips in the same folds are."""
    folds = [_folds(table) for table in (first, second)]
    return folds[0] == folds[1]


def _folds(table: Path) -> dict[str, str]:
    """Clip -> fold, of a table whose clips were judged fold by fold; empty of any other."""
    found = read_predictions(table)
    return dict(zip(found.cells("id"), found.columns[FOLD], strict=True)) if FOLD in found.columns else {}


def _compared(name: str, first: Path, second: Path) -> list[Comparison]:
    ours, theirs = read_predictions(first), read_predictions(second)
    ids, row_of = ours.cells("id"), {clip: row for row, clip in enumerate(theirs.cells("id"))}
    truths, tops = ([table.classes(column) for table in (ours, theirs)] for column in ("intended", "top"))
    if other := set(ids) ^ row_of.keys():
        raise RunError(
            f"{first} and {second} are of other clips ({len(other)} are in one of them, such as {min(other)}): "
            "compare runs of one split"
        )
    same = [row_of[clip] for clip in ids]
    changed = np.flatnonzero(truths[0] != truths[1][same])
    if len(changed):
        raise RunError(
            f"{first} and {second} hold another truth for {len(changed)} clips, such as {ids[int(changed[0])]}"
        )
    known = np.flatnonzero(truths[0] >= 0)
    truth, speakers = truths[0][known], [ours.cells("speaker")[row] for row in known]
    guesses = [tops[0][known], tops[1][same][known]]
    return [
        Comparison(
            name,
            metric,
            len(known),
            len(set(speakers)),
            interval(measure, truth, guesses[0], speakers),
            interval(measure, truth, guesses[1], speakers),
            paired_difference(measure, truth, guesses[1], guesses[0], speakers),
        )
        for metric, measure in _METRICS.items()
    ]
