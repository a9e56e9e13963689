"""Tables whose rows are members over several seeds: trained on all training speakers, scored, and compared in pairs.

A column is one compared member with one seed, the same in all rows. A seed draws the same
batches in all rows that are trained in epochs and read the words (or in all that do not), and the same first weights for every
module that two rows share (`train.first_weights`).

Shapes: N = clips, M = columns of a row: the compared members, each with every seed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from train.ablate import guesses_of, train_missing
from train.ablation_tables import known_rows, mean_macro_f1
from train.config import MemberConfig, Recipe
from train.errors import RecipeError
from train.execution import device_of
from train.features import Progress
from train.loop import class_bias
from train.metrics import Estimate, Labels, interval, macro_f1, paired_difference, unweighted_average_recall
from train.prepare import Prepared, prepare
from train.reference import Guesses, Reference, reference_of
from train.run import Task
from train.stages.members import ALL_SPEAKERS, Job, train_member

SEEDS: Final = 3
"""Of each row and member, where nobody says how many."""
Tested = tuple[str, Reference, dict[str, Guesses]]
"""A test set: its name, what guesses are held against, and member -> guesses `[N]`."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One trained member of a table: a row's, with one seed.

    Attributes:
        row: the row.
        of: the compared member, of the recipe.
        member: as a recipe has it.
    """

    row: str
    of: str
    member: MemberConfig

    @property
    def column(self) -> str:
        """Which compared member and which seed; rows are paired by it."""
        return f"{self.of}, seed {self.member.seed}"


def seeds_from(first: int, seeds: int) -> range:
    """The seeds of a row, from that of the compared member on.

    Raises:
        RecipeError: if there is none.
    """
    if seeds < 1:
        raise RecipeError(f"a row has one or more seeds, got {seeds}")
    return range(first, first + seeds)


def rows_recipe(recipe: Recipe, found: Sequence[Variant]) -> Recipe:
    """The recipe with these members alone."""
    return recipe.model_copy(update={"members": tuple(variant.member for variant in found), "fallbacks": ()})


def row_jobs(changed: Recipe) -> dict[str, Job]:
    """How the members of all rows are trained, by name.

    Modules that two rows share begin with the same weights; a fit begins at 0, where its problem has it (`train.linear`).
    """
    return {
        spec.name: Job(spec, ALL_SPEAKERS, drawn_by_name=spec.family != "linear") for spec in changed.member_specs()
    }


def train_rows(
    changed: Recipe, data: Path, cache: Path, folder: Path, workers: int, progress: Progress
) -> tuple[Prepared, Iterator[Tested]]:
    """Trains the members that are missing; returns what they learned from, and their guesses on one test set after the other.

    Args:
        changed: the recipe, its members those of all rows.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache.
        folder: of the trained members.
        workers: processes that train members side by side.
        progress: told what is done.

    Raises:
        RecipeError: if the device is not there.
    """
    prepared, device = prepare(changed, data, cache, progress), device_of(changed.compute.device)
    jobs = row_jobs(changed)
    train_missing([Task(job, changed, folder) for job in jobs.values()], changed, data, cache, workers, progress)
    networks = {name: train_member(job, changed, prepared.training, folder).to(device) for name, job in jobs.items()}

    def tested() -> Iterator[Tested]:
        bias, encoders = class_bias(prepared.training.trained_classes), changed.encoder_specs()
        for done, (name, test) in enumerate(prepared.test.items()):
            progress("comparisons", done, len(prepared.test))
            reference = reference_of(test, prepared.votes[name], prepared.genders[name])
            yield name, reference, guesses_of(networks, encoders, test, bias)
        progress("comparisons", len(prepared.test), len(prepared.test))

    return prepared, tested()


def clips_of(reference: Reference) -> dict[str, Any]:
    """What figures are of, as plain data."""
    truth, speakers, _ = known_rows(reference)
    return {"clips": len(truth), "speakers": len(set(speakers)), "reference": reference.kind}


def by_row(found: Iterable[Variant], guesses: Mapping[str, Guesses]) -> dict[str, dict[str, Guesses]]:
    """Row -> column -> guesses, of guesses by member."""
    rows: dict[str, dict[str, Guesses]] = {}
    for variant in found:
        rows.setdefault(variant.row, {})[variant.column] = guesses[variant.member.name]
    return rows


@dataclass(frozen=True, slots=True)
class Gain:
    """One row over another, paired over clips, speakers and columns.

    Attributes:
        macro_f1: difference of the means over columns.
        uar: the same of UAR.
        ahead: in how many columns macro-F1 is higher.
    """

    macro_f1: Estimate
    uar: Estimate
    ahead: int


class Scores:
    """Scores the rows of one test set.

    Args:
        reference: what guesses are held against; clips without a truth count in no figure.
        rows: row -> column -> guesses `[N]`; all rows have the same columns, all seeds of a compared member side by side.
        seeds: how many columns each compared member has.
    """

    def __init__(self, reference: Reference, rows: Mapping[str, Mapping[str, Guesses]], seeds: int) -> None:
        self._truth, self._speakers, known = known_rows(reference)
        self._guesses = {row: _columns(guesses, known) for row, guesses in rows.items()}
        self._names = {row: list(guesses) for row, guesses in rows.items()}
        self._seeds = seeds

    def row(self, name: str) -> dict[str, Any]:
        """A row's own figures: means over columns with intervals, and each column, as plain data."""
        guesses, each = self._guesses[name], self._each(name)
        return {
            "macro_f1": asdict(interval(mean_macro_f1, self._truth, guesses, self._speakers)),
            "uar": asdict(interval(_mean_uar, self._truth, guesses, self._speakers)),
            "spread": _spread(each, self._seeds),
            "by_column": dict(zip(self._names[name], each, strict=True)),
        }

    def gain(self, name: str, over: str) -> Gain:
        """What one row has over another."""
        now, before = self._guesses[name], self._guesses[over]
        return Gain(
            macro_f1=paired_difference(mean_macro_f1, self._truth, now, before, self._speakers),
            uar=paired_difference(_mean_uar, self._truth, now, before, self._speakers),
            ahead=sum(mine > theirs for mine, theirs in zip(self._each(name), self._each(over), strict=True)),
        )

    def _each(self, name: str) -> Sequence[float]:
        return [macro_f1(self._truth, column) for column in self._guesses[name].T]


def _columns(guesses: Mapping[str, Guesses], known: npt.NDArray[np.int64]) -> Labels:
    return np.stack([guess[known] for guess in guesses.values()], axis=1)


def _spread(each: Sequence[float], seeds: int) -> float | None:
    """Standard deviation over the seeds of a member, pooled over members: what members differ by is not in it."""
    if seeds < 2:
        return None
    return float(np.sqrt(np.reshape(each, (-1, seeds)).var(axis=1, ddof=1).mean()))


def _mean_uar(truth: Labels, guesses: Labels) -> float:
    return float(np.mean([unweighted_average_recall(truth, column) for column in guesses.T]))
