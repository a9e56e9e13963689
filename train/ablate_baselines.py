"""`medusa-train ablate --table baselines`: whether deep fusion beats late fusion, one modality alone and a linear probe.

Shapes: N = clips.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from train.baselines import DEEP, baselines_recipe, compared_members, variants, why_not
from train.baselines_report import write_baselines
from train.config import Recipe
from train.contamination import KEY, contaminating
from train.features import Progress
from train.reference import Guesses, Reference
from train.seeded_rows import SEEDS, Scores, by_row, clips_of, train_rows

_FOLDER: Final = "baselines"


def ablate_baselines(
    recipe: Recipe,
    data: Path,
    cache: Path,
    out: Path,
    workers: int,
    progress: Progress,
    members: tuple[str, ...] = (),
    seeds: int = SEEDS,
) -> Path:
    """Trains what is missing, compares, and writes the tables; returns the page's path.

    Args:
        recipe: the members' own; they are trained anew, over several seeds.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache.
        out: folder of the comparison, which may be a run's.
        workers: processes that train members side by side.
        progress: told what is done.
        members: names of the members that are compared; none for the first of different modalities, at most four.
        seeds: how many of each row and member.

    Raises:
        RecipeError: if a member or the device is not there, or a member has no baselines.
    """
    compared = compared_members(recipe, members)
    found = variants(recipe, compared, seeds)
    folder = out / "ablations" / _FOLDER / "members"
    changed = baselines_recipe(recipe, found)
    _, tested = train_rows(changed, data, cache, folder, workers, progress)
    of = {spec.name: [variant for variant in found if variant.of == spec.name] for spec in compared}
    read = {
        name: {variant.row: list(variant.member.modalities) for variant in variants} for name, variants in of.items()
    }
    sets: dict[str, Any] = {}
    for test, reference, guesses in tested:
        tables = {name: baselines_table(reference, by_row(variants, guesses), seeds) for name, variants in of.items()}
        for name, rows in tables.items():
            for row, figures in rows.items():
                figures[KEY] = contaminating(recipe, test, read[name][row])
        sets[f"{test} (unseen speakers)"] = {**clips_of(reference), "members": tables}
    return write_baselines(
        out,
        {
            "format": 1,
            "name": f"medusa-rt {recipe.name}",
            "members": read,
            "left_out": {spec.name: why for spec in recipe.member_specs() if (why := why_not(spec))},
            "seeds": seeds,
            "l2": list(changed.linear.l2),
            "sets": sets,
        },
    )


def baselines_table(
    reference: Reference, guesses: Mapping[str, Mapping[str, Guesses]], seeds: int
) -> dict[str, dict[str, Any]]:
    """Every row's figures on one test set, and the gain of deep fusion over it, paired over clips, speakers and seeds.

    Args:
        reference: what guesses are held against.
        guesses: row -> column -> guesses `[N]` of one member; all rows have the same columns.
        seeds: how many columns there are.
    """
    scores = Scores(reference, guesses, seeds)
    rows = {row: scores.row(row) for row in guesses}
    for row in guesses.keys() - {DEEP}:
        gain = scores.gain(DEEP, row)
        rows[row] |= {"gain": asdict(gain.macro_f1), "uar_gain": asdict(gain.uar), "ahead": gain.ahead}
    return rows
