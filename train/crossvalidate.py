"""A run for each session or fold of speakers, each tested on in its turn: what all of them say of everybody, put together.

This is the protocol that papers on IEMOCAP follow: nothing of a run has heard the speakers that it is tested on, and it costs
as many runs as there are parts. `train.cross_validation` is another thing: it judges the training speakers of one run, by the
folds of its stage 3, and costs next to nothing.

Only the corpus that is divided is put together. Other corpora of `evaluate` are tested by every run, in its own report.

Shapes: N = clips of all turns, 8 = classes in canonical order.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Final

import numpy as np

from train.calibration import calibration_error
from train.config import Recipe
from train.contamination import KEY
from train.crossvalidate_report import FIGURES, write_crossvalidation
from train.errors import RunError
from train.evaluate import compare_guesses
from train.execution import world_size
from train.features import Progress
from train.metrics import accuracy, macro_f1, unweighted_average_recall
from train.predictions import predictions_file, read_predictions
from train.reference import Guesses, Posterior, Reference, joined
from train.report import read_results
from train.results import SOUP
from train.run import train_ensemble
from train.turns import Turn, turns_of

_METRICS: Final = dict(zip(FIGURES, (unweighted_average_recall, macro_f1, accuracy), strict=True))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one turn's run says of the part that it is tested on.

    Attributes:
        turn: which part.
        reference: the truth about its clips.
        systems: name -> guesses, one a clip.
        posterior: of the soup, calibrated, a row of eight a clip.
        taught: system -> the encoders that it reads which were trained on this corpus' labels.
    """

    turn: Turn
    reference: Reference
    systems: Mapping[str, Guesses]
    posterior: Posterior
    taught: Mapping[str, Sequence[str]]


def crossvalidate(recipe: Recipe, data: Path, cache: Path, out: Path, workers: int, progress: Progress) -> Path:
    """Makes or resumes the run of every turn, and writes what they say together; returns the page's path.

    Args:
        recipe: divides its corpus into sessions or folds; whichever it tests on itself, all have their turn.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache, which all turns share.
        out: folder of the results, with a sub-folder for each turn's run.
        workers: processes that train members side by side.
        progress: told what is done.

    Raises:
        CorpusError: if the corpus is missing, or cannot be divided like this.
        RecipeError: if the recipe divides its corpus only once, or asks for a device that is not here.
        RunError: if torchrun started this, or the turns cannot be put together.
    """
    if (world := world_size()) > 1:
        raise RunError(
            f"crossvalidate is one process, and torchrun has started {world}: start it without torchrun, or make the run of "
            "each turn under torchrun (medusa-train run) with a recipe that names its test_session or test_fold"
        )
    turns = turns_of(recipe, data)
    for done, turn in enumerate(turns):
        progress("turns", done, len(turns))
        train_ensemble(turn.recipe, data, cache, out / turn.folder, workers, progress)
    progress("turns", len(turns), len(turns))
    found = put_together([read_turn(turn, out / turn.folder) for turn in turns])
    told = {
        "format": 1,
        "name": f"medusa-rt {recipe.name}",
        "corpus": recipe.data.corpus,
        "split": recipe.data.split,
        "members": [member.name for member in recipe.members],
    }
    return write_crossvalidation(out, told | found)


def read_turn(turn: Turn, run: Path) -> Outcome:
    """What a finished run has left about the part that it is tested on.

    Raises:
        ReportError: if the run is not finished.
        RunError: if it holds no such table.
    """
    file = predictions_file(turn.recipe.data.corpus)
    told = [found for found in read_results(run)["evaluations"].values() if found.get("predictions") == file]
    if not told:
        raise RunError(f"{run} was not tested on {turn.recipe.data.corpus}: medusa-train evaluate --out {run} does it")
    table = read_predictions(run / file)
    return Outcome(
        turn=turn,
        reference=table.reference(told[0]["reference"]),
        systems=table.systems,
        posterior=table.block("p"),
        taught={system: found[KEY] for system, found in told[0]["systems"].items()},
    )


def put_together(turns: Sequence[Outcome]) -> dict[str, Any]:
    """All clips as one test set, and each turn by itself, as plain data for JSON.

    Raises:
        RunError: if somebody was tested twice, or the turns compare other systems or hold them against other things.
    """
    first = turns[0]
    for tested in turns[1:]:
        if other := first.systems.keys() ^ tested.systems.keys():
            raise RunError(
                f"{first.turn.name} and {tested.turn.name} compare other systems, one of them alone has "
                f"{', '.join(sorted(other))}: medusa-train evaluate makes the table of the older run anew"
            )
    reference = joined([tested.reference for tested in turns])
    if twice := [clip for clip, times in Counter(reference.ids).items() if times > 1]:
        raise RunError(f"{len(twice)} clips are tested in more than one turn, such as {min(twice)}: each has one turn")
    systems = {name: np.concatenate([tested.systems[name] for tested in turns]) for name in first.systems}
    found = compare_guesses(reference, systems, SOUP)
    for system, scored in found["systems"].items():
        scored[KEY] = list(first.taught[system])
    known = np.flatnonzero(reference.truth >= 0)
    posterior = np.concatenate([tested.posterior for tested in turns])
    rows = [_of_turn(tested) for tested in turns]
    by_figure = {name: [row[name] for row in rows] for name in FIGURES}
    return found | {
        "ece": calibration_error(reference.truth[known], posterior[known]),
        "turns": rows,
        "over_turns": {name: {"mean": mean(values), "deviation": stdev(values)} for name, values in by_figure.items()},
    }


def _of_turn(tested: Outcome) -> dict[str, Any]:
    """The soup on one turn's clips; too few speakers for intervals."""
    known = np.flatnonzero(tested.reference.truth >= 0)
    truth, mine = tested.reference.truth[known], tested.systems[SOUP][known]
    return {
        "name": tested.turn.name,
        "folder": tested.turn.folder,
        "clips": len(tested.reference.ids),
        "without_reference": len(tested.reference.ids) - len(known),
        "speakers": len(set(tested.reference.speakers)),
        **{name: metric(truth, mine) for name, metric in _METRICS.items()},
    }
