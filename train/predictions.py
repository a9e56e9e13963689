"""Posteriors of every test clip as tables that any program reads, for analyses that the report does not make."""

import csv
import re
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from model.labels import CLASSES
from train.reference import Outputs, Reference
from train.transcripts import CONFIDENCE, Confidence

FOLDER: Final = "predictions"
FOLD: Final = "fold"
"""Column of a table whose clips were judged fold by fold."""
_COLUMNS: Final = ("id", "speaker", "gender", "intended", "top", "confidence", "uncertainty", "abstained")


def predictions_file(name: str) -> str:
    """Path of a test set's table within the run's folder: "cremad, degraded" is in `predictions/cremad-degraded.csv`."""
    return f"{FOLDER}/{slug(name)}.csv"


def slug(name: str) -> str:
    """A name as a file may have it: lower case, and one hyphen for whatever is no letter or digit."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write_predictions(
    path: Path,
    reference: Reference,
    outputs: Outputs,
    word_confidence: Confidence,
    folds: npt.NDArray[np.int64] | None = None,
) -> None:
    """Writes one row per clip.

    Args:
        path: of the table.
        reference: the truth about N clips.
        outputs: what is said of them.
        word_confidence: of their transcripts, `[N, 3]` (`train.transcripts.CONFIDENCE`), NaN where unknown.
        folds: of each clip, the fold whose ensemble judged it, `[N]`; None where one ensemble judged all.

    Columns: id, speaker, gender, the truth (`intended`, or the dominant vote where nobody acted; empty without one), the
    soup's class, confidence, disagreement and whether it abstains; then `vote_CLASS` (empty without raters), `p_CLASS`
    (calibrated posterior), `prior_corrected_CLASS`, `attribute` and `rated_attribute` of each trained attribute, and
    `words_log_probability`, `words_no_speech` and `words_trusted` of the transcript (empty where unknown).
    """
    blocks = {
        "vote": np.full_like(outputs.posterior, np.nan) if reference.votes is None else reference.votes,
        "p": outputs.posterior,
        "prior_corrected": outputs.prior_corrected,
    }
    columns: dict[str, np.ndarray[tuple[int], np.dtype[np.floating]]] = {
        f"{block}_{name}": values[:, index] for block, values in blocks.items() for index, name in enumerate(CLASSES)
    }
    for index, name in outputs.trained_columns:
        columns |= {name: outputs.attributes[:, index], f"rated_{name}": reference.attributes[:, index]}
    columns |= {f"words_{kind}": word_confidence[:, index] for index, kind in enumerate(CONFIDENCE)}
    path.parent.mkdir(parents=True, exist_ok=True)
    doubt, posterior = outputs.disagreement, outputs.posterior
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*_COLUMNS, *columns, *([] if folds is None else [FOLD])])
        for row, clip in enumerate(reference.ids):
            truth, confidence = reference.truth[row], float(posterior[row].max())
            table.writerow(
                [
                    clip,
                    reference.speakers[row],
                    reference.genders[row],
                    CLASSES[truth] if truth >= 0 else "",
                    CLASSES[int(posterior[row].argmax())],
                    _number(confidence),
                    _number(doubt[row]),
                    int(confidence < outputs.abstain_below),
                    *(_number(values[row]) for values in columns.values()),
                    *([] if folds is None else [int(folds[row])]),
                ]
            )


def _number(value: float | np.floating) -> str:
    """Six digits, and nothing for what is not known."""
    return "" if np.isnan(value) else f"{value:.6g}"
