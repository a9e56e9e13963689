"""Posteriors of every test clip as tables that any program reads, for analyses that the report does not make.

Shapes: N = clips, 8 = classes in canonical order.
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from model.labels import ATTRIBUTES, CLASS_INDEX, CLASSES
from train.errors import RunError
from train.reference import Guesses, Judged, Posterior, Reference
from train.transcripts import CONFIDENCE, Confidence

FOLDER: Final = "predictions"
FOLD: Final = "fold"
"""Column of a table whose clips were judged fold by fold."""
_GUESS: Final = "guess: "
"""Begins the name of a column of one system's guesses."""
_COLUMNS: Final = ("id", "speaker", "gender", "intended", "top", "confidence", "uncertainty", "abstained")


def predictions_file(name: str) -> str:
    """Path of a test set's table within the run's folder: "cremad, degraded" is in `predictions/cremad-degraded.csv`."""
    return f"{FOLDER}/{slug(name)}.csv"


def slug(name: str) -> str:
    """A name as a file may have it: lower case, and one hyphen for whatever is no letter or digit."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write_predictions(
    path: Path,
    judged: Judged,
    word_confidence: Confidence,
    folds: npt.NDArray[np.int64] | None = None,
) -> None:
    """Writes one row per clip.

    Args:
        path: of the table.
        judged: the truth about N clips, and what is said of them.
        word_confidence: of their transcripts, `[N, 3]` (`train.transcripts.CONFIDENCE`), NaN where unknown.
        folds: of each clip, the fold whose ensemble judged it, `[N]`; None where one ensemble judged all.

    Columns: id, speaker, gender, the truth (`intended`, or the dominant vote where nobody acted; empty without one), the
    soup's class, confidence, disagreement and whether it abstains; then `vote_CLASS` (empty without raters), `p_CLASS`
    (calibrated posterior), `prior_corrected_CLASS`, `attribute` and `rated_attribute` of each trained attribute,
    `words_log_probability`, `words_no_speech` and `words_trusted` of the transcript (empty where unknown), `guess: SYSTEM`,
    the class that each compared system says, the soup among them, and, where there are folds, `fold`.
    """
    reference, outputs = judged.reference, judged.outputs
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
        guesses = [f"{_GUESS}{system}" for system in judged.systems]
        table.writerow([*_COLUMNS, *columns, *guesses, *([] if folds is None else [FOLD])])
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
                    *(CLASSES[guessed[row]] for guessed in judged.systems.values()),
                    *([] if folds is None else [int(folds[row])]),
                ]
            )


def _number(value: float | np.floating) -> str:
    """Six digits, and nothing for what is not known."""
    return "" if np.isnan(value) else f"{value:.6g}"


@dataclass(frozen=True, slots=True)
class Table:
    """A table of predictions as it lies in a file, of this version or an earlier one: columns are read when asked for.

    Attributes:
        path: of the file.
        columns: name -> N cells.
    """

    path: Path
    columns: Mapping[str, tuple[str, ...]]

    def cells(self, column: str) -> tuple[str, ...]:
        """N texts.

        Raises:
            RunError: if there is no such column.
        """
        if column not in self.columns:
            raise RunError(f"{self.path} is no table of predictions: {column!r} is not among its columns")
        return self.columns[column]

    def classes(self, column: str) -> Guesses:
        """Class index `[N]`, -1 where a cell is empty.

        Raises:
            RunError: if there is no such column, or it holds something else than classes.
        """
        names = self.cells(column)
        if unknown := sorted(set(names) - {"", *CLASS_INDEX}):
            raise RunError(f"{self.path} names the classes {', '.join(unknown)}; the classes are {', '.join(CLASSES)}")
        return np.array([CLASS_INDEX.get(name, -1) for name in names], np.int64)

    def block(self, name: str) -> Posterior:
        """A number for each class `[N, 8]`, NaN where a cell is empty.

        Raises:
            RunError: if a column is missing, or holds something else than numbers.
        """
        cells = [self.cells(f"{name}_{label}") for label in CLASSES]
        try:
            return np.array([[float(cell or "nan") for cell in row] for row in zip(*cells, strict=True)])
        except ValueError as error:
            raise RunError(f"{self.path} holds no numbers for {name}: {error}") from error

    @property
    def systems(self) -> dict[str, Guesses]:
        """System -> its guesses `[N]`; none in a table that an earlier version wrote."""
        names = [column.removeprefix(_GUESS) for column in self.columns if column.startswith(_GUESS)]
        return {name: self.classes(f"{_GUESS}{name}") for name in names}

    def reference(self, kind: str) -> Reference:
        """The truth about the clips, without the ratings.

        Args:
            kind: what the truth is, which only the report tells.

        Raises:
            RunError: if a column is missing, or holds something else than it should.
        """
        votes, ids = self.block("vote"), self.cells("id")
        return Reference(
            ids=ids,
            speakers=self.cells("speaker"),
            genders=self.cells("gender"),
            truth=self.classes("intended"),
            kind=kind,
            votes=None if np.isnan(votes).all() else votes,
            attributes=np.full((len(ids), len(ATTRIBUTES)), np.nan),
        )


def read_predictions(path: Path) -> Table:
    """What `write_predictions` left.

    Raises:
        RunError: if the file is no table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        columns = list(zip(*rows, strict=True)) or [()] * len(header)
        return Table(path, dict(zip(header, columns, strict=True)))
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"{path} is no table of predictions: {error}") from error
