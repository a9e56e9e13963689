"""`medusa-train ablate --table parts`: what VGA, EAAF and MICL add to cross-attention, over several seeds.

Shapes: N = clips.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from train.config import Recipe
from train.contamination import KEY, contaminating
from train.family_parts import BASELINE, compared_members, variants
from train.features import Progress
from train.parts_report import write_parts
from train.reference import Guesses, Reference
from train.seeded_rows import SEEDS, Scores, by_row, clips_of, rows_recipe, train_rows

_FOLDER: Final = "parts"


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
    folder = out / "ablations" / _FOLDER / "members"
    prepared, tested = train_rows(rows_recipe(recipe, found), data, cache, folder, workers, progress)
    read = {modality for spec in compared for modality in spec.modalities}
    return write_parts(
        out,
        {
            "format": 1,
            "name": f"medusa-rt {recipe.name}",
            "members": {spec.name: list(spec.modalities) for spec in compared},
            "seeds": seeds,
            "rated": not bool(np.isnan(prepared.training.train.attributes).all()),
            "sets": {
                f"{name} (unseen speakers)": parts_table(reference, by_row(found, guesses), seeds)
                | {KEY: contaminating(recipe, name, read)}
                for name, reference, guesses in tested
            },
        },
    )


def parts_table(reference: Reference, guesses: Mapping[str, Mapping[str, Guesses]], seeds: int) -> dict[str, Any]:
    """Every row's figures on one test set, and its change from the baseline, paired over clips, speakers and seeds.

    Args:
        reference: what guesses are held against.
        guesses: row -> column -> guesses `[N]`; all rows have the same columns, all seeds of a compared member side by side.
        seeds: how many columns each compared member has.
    """
    scores = Scores(reference, guesses, seeds)
    rows = {part: scores.row(part) for part in guesses}
    for part in guesses.keys() - {BASELINE}:
        gain = scores.gain(part, BASELINE)
        rows[part] |= {"change": asdict(gain.macro_f1), "uar_change": asdict(gain.uar), "better_in": gain.ahead}
    return {**clips_of(reference), "rows": rows}
