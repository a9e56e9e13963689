"""`medusa-train ablate --table parts`: what VGA, EAAF and MICL add to cross-attention, over several seeds.

Shapes: N = clips, M = columns of a row: the compared members, each with every seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from train.ablate import guesses_of, train_missing
from train.ablation_tables import known_rows, mean_macro_f1
from train.config import Recipe
from train.contamination import KEY, contaminating
from train.execution import device_of
from train.family_parts import BASELINE, PARTS, compared_members, parts_recipe, variants
from train.features import Progress
from train.loop import class_bias
from train.metrics import Labels, interval, macro_f1, paired_difference, unweighted_average_recall
from train.parts_report import write_parts
from train.prepare import prepare
from train.reference import Guesses, Reference, reference_of
from train.run import Task
from train.stages.members import ALL_SPEAKERS, Job, train_member

_FOLDER: Final = "parts"
SEEDS: Final = 3
"""Of each row and member, where nobody says how many."""


def ablate_parts(
    recipe: Recipe,
    data: Path,
    cache: Path,
    out: Path,
    workers: int,
    progress: Progress,
    members: tuple[str, ...] = (),
    seeds: int = SEEDS,
) -> Path:
    """Trains what is missing, compares, and writes the table; returns the page's path.

    Args:
        recipe: names data, encoders, stages and losses; its own members are not trained.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache.
        out: folder of the comparison, which may be a run's.
        workers: processes that train members side by side.
        progress: told what is done.
        members: names of those whose modalities and sizes the rows have; none for the first that reads several modalities.
        seeds: how many of each row and member.

    Raises:
        RecipeError: if a member or the device is not there, or the members read one modality.
    """
    compared = compared_members(recipe, members)
    found = variants(compared, seeds)
    changed = parts_recipe(recipe, found)
    prepared, device = prepare(recipe, data, cache, progress), device_of(recipe.compute.device)
    folder = out / "ablations" / _FOLDER / "members"
    jobs = part_jobs(changed)
    train_missing([Task(job, changed, folder) for job in jobs.values()], recipe, data, cache, workers, progress)
    networks = {
        part.name: {
            variant.column: train_member(jobs[variant.member.name], changed, prepared.training, folder).to(device)
            for variant in found
            if variant.part == part.name
        }
        for part in PARTS
    }
    bias, encoders = class_bias(prepared.training.trained_classes), recipe.encoder_specs()
    read = {modality for spec in compared for modality in spec.modalities}
    sets: dict[str, Any] = {}
    for done, name in enumerate(prepared.test):
        progress("comparisons", done, len(prepared.test))
        test = prepared.test[name]
        reference = reference_of(test, prepared.votes[name], prepared.genders[name])
        guesses = {part: guesses_of(columns, encoders, test, bias) for part, columns in networks.items()}
        sets[f"{name} (unseen speakers)"] = parts_table(reference, guesses, seeds) | {
            KEY: contaminating(recipe, name, read)
        }
    progress("comparisons", len(prepared.test), len(prepared.test))
    return write_parts(
        out,
        {
            "format": 1,
            "name": f"medusa-rt {recipe.name}",
            "members": {spec.name: list(spec.modalities) for spec in compared},
            "seeds": seeds,
            "rated": not bool(np.isnan(prepared.training.train.attributes).all()),
            "sets": sets,
        },
    )


def part_jobs(changed: Recipe) -> dict[str, Job]:
    """How the members of all rows are trained, by name: modules that two rows share begin with the same weights."""
    return {spec.name: Job(spec, ALL_SPEAKERS, drawn_by_name=True) for spec in changed.member_specs()}


def parts_table(reference: Reference, guesses: Mapping[str, Mapping[str, Guesses]], seeds: int) -> dict[str, Any]:
    """Every row's figures on one test set, and its change from the baseline, paired over clips, speakers and seeds.

    Args:
        reference: what guesses are held against.
        guesses: row -> column -> guesses `[N]`; all rows have the same columns, all seeds of a compared member side by side.
        seeds: how many columns each compared member has.
    """
    truth, speakers, known = known_rows(reference)
    columns = {part: np.stack([guess[known] for guess in of.values()], axis=1) for part, of in guesses.items()}
    before, rows = columns[BASELINE], {}
    base = _each(truth, before)
    for part, now in columns.items():
        each = _each(truth, now)
        rows[part] = {
            "macro_f1": asdict(interval(mean_macro_f1, truth, now, speakers)),
            "uar": asdict(interval(_mean_uar, truth, now, speakers)),
            "spread": _spread(each, seeds),
            "by_column": dict(zip(guesses[part], each, strict=True)),
        }
        if part != BASELINE:
            rows[part] |= {
                "change": asdict(paired_difference(mean_macro_f1, truth, now, before, speakers)),
                "uar_change": asdict(paired_difference(_mean_uar, truth, now, before, speakers)),
                "better_in": sum(mine > theirs for mine, theirs in zip(each, base, strict=True)),
            }
    return {"clips": len(known), "speakers": len(set(speakers)), "reference": reference.kind, "rows": rows}


def _each(truth: Labels, guesses: Labels) -> Sequence[float]:
    return [macro_f1(truth, column) for column in guesses.T]


def _spread(each: Sequence[float], seeds: int) -> float | None:
    """Standard deviation over the seeds of a member, pooled over members: what members differ by is not in it."""
    if seeds < 2:
        return None
    return float(np.sqrt(np.reshape(each, (-1, seeds)).var(axis=1, ddof=1).mean()))


def _mean_uar(truth: Labels, guesses: Labels) -> float:
    return float(np.mean([unweighted_average_recall(truth, column) for column in guesses.T]))
