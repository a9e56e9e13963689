"""What deep fusion has to beat: for each member of DeepSER that fuses, members that differ from it in one thing each.

Late fusion has a network per modality and nothing between them; a single-modality transformer is the member with one of its
modalities alone; the linear probe is the family "linear" on all of them (`model.network.linear`). All learn from the same
features and speakers, of copies and texts that are drawn alike.
"""

from dataclasses import asdict
from typing import Final

from model.spec import MemberSpec
from train.ablations import chosen_members, late_fusion
from train.config import MemberConfig, Recipe
from train.errors import RecipeError
from train.seeded_rows import Variant, rows_recipe, seeds_from

DEEP: Final = "deep fusion"
LATE: Final = "late fusion"
PROBE: Final = "linear probe"
STRENGTHS: Final = (0.05, 0.5, 5.0)
"""Of the probe's L2: the held-out speakers choose among these and the recipe's, where that gives no choice."""


def alone(modality: str) -> str:
    """Name of the row of a single-modality transformer."""
    return f"{modality} alone"


def why_not(spec: MemberSpec) -> str:
    """Why a member of a recipe has no such baselines; "" if it has."""
    if spec.family == "linear":
        return "is linear: it is a baseline itself"
    if len(spec.modalities) == 1:
        return f"reads {spec.modalities[0]} alone, so it is a single-modality transformer itself"
    if spec.family == "vga":
        return "is of the second family, which has no form for one modality: its parts are compared by --table parts"
    return "fuses late itself" if spec.fusion == "late" else ""


def compared_members(recipe: Recipe, wanted: tuple[str, ...] = ()) -> tuple[MemberSpec, ...]:
    """The members that are held against baselines: those wanted, or the first of different modalities, at most four.

    Raises:
        RecipeError: if a wanted member is not in the recipe or has no baselines, or none has.
    """
    specs = {spec.name: spec for spec in recipe.member_specs()}
    names = chosen_members(recipe, wanted) if wanted else tuple(specs)
    reasons = {name: why_not(specs[name]) for name in names}
    told = "; ".join(f"{name} {why}" for name, why in reasons.items() if why)
    fitting = [name for name, why in reasons.items() if not why]
    if not fitting or (wanted and told):
        raise RecipeError(f"baselines are those of members of DeepSER that fuse two or more modalities deeply: {told}")
    if not wanted:
        kept = tuple(member for member in recipe.members if member.name in fitting)
        fitting = list(chosen_members(recipe.model_copy(update={"members": kept})))
    return tuple(specs[name] for name in fitting)


def variants(recipe: Recipe, compared: tuple[MemberSpec, ...], seeds: int) -> tuple[Variant, ...]:
    """Every member of the table: for each that is compared, itself and its baselines, one of every seed.

    There is no late fusion of a member with guided attention (`train.ablations`): its table goes without that row.

    Raises:
        RecipeError: if there is no seed.
    """
    return tuple(
        Variant(row, spec.name, member)
        for spec in compared
        for seed in seeds_from(spec.seed, seeds)
        for row, member in _rows(recipe, spec, seed).items()
    )


def baselines_recipe(recipe: Recipe, found: tuple[Variant, ...]) -> Recipe:
    """The recipe with these members alone, and a probe whose strength is chosen."""
    changed = rows_recipe(recipe, found)
    if len(recipe.linear.l2) > 1:
        return changed
    return changed.model_copy(
        update={"linear": recipe.linear.model_copy(update={"l2": tuple(sorted({*STRENGTHS, *recipe.linear.l2}))})}
    )


def _rows(recipe: Recipe, spec: MemberSpec, seed: int) -> dict[str, MemberConfig]:
    deep = MemberConfig.model_validate(asdict(spec) | {"seed": seed})
    (late,) = late_fusion(recipe.model_copy(update={"members": (deep,)})).members
    rows = {DEEP: deep}
    if late.fusion == "late":
        rows[LATE] = late
    for modality in spec.modalities:
        rows[alone(modality)] = deep.model_copy(update={"modalities": (modality,), "contrast": 0})
    rows[PROBE] = MemberConfig(name=spec.name, modalities=spec.modalities, seed=seed, family="linear")
    return {
        row: member.model_copy(update={"name": f"{spec.name}-{row.replace(' ', '-')}-{seed}"})
        for row, member in rows.items()
    }
