"""The second family part by part: members that differ in one part each, from any recipe.

Source: the baseline is cross-attention between frames and tokens with plain scores, whose vectors are joined side by side; VGA,
EAAF and MICL are each put on it alone, and all together (docs/training.md).
"""

from dataclasses import dataclass
from typing import Final

from model.spec import Attention, Gates, MemberSpec
from train.config import MemberConfig, Recipe
from train.errors import RecipeError
from train.seeded_rows import Variant, seeds_from

BASELINE: Final = "cross-attention"


@dataclass(frozen=True, slots=True)
class Part:
    """One row: what is put on the baseline.

    Attributes:
        name: as tables show it.
        attention: of the member.
        gates: of the member.
        contrasted: whether it has a contrastive loss.
    """

    name: str
    attention: Attention = "plain"
    gates: Gates = "none"
    contrasted: bool = False


PARTS: Final = (
    Part(BASELINE),
    Part("with VGA", attention="vad-guided"),
    Part("with EAAF", gates="shares"),
    Part("with MICL", contrasted=True),
    Part("full", attention="vad-guided", gates="shares", contrasted=True),
)


def compared_members(recipe: Recipe, wanted: tuple[str, ...] = ()) -> tuple[MemberSpec, ...]:
    """The members whose modalities and sizes the rows have: those wanted, or the first that reads several modalities.

    Raises:
        RecipeError: if a wanted member is not in the recipe or reads one modality, or none reads several.
    """
    specs = {spec.name: spec for spec in recipe.member_specs()}
    if unknown := [name for name in wanted if name not in specs]:
        raise RecipeError(f"there are no members {', '.join(unknown)}: the recipe has {', '.join(specs)}")
    fusing = tuple(spec for spec in specs.values() if len(spec.modalities) > 1 and spec.family != "linear")
    if alone := [name for name in wanted if specs[name] not in fusing]:
        raise RecipeError(
            f"the second family fuses two or more modalities, and {', '.join(alone)} reads one or is linear: "
            f"members of several are {', '.join(spec.name for spec in fusing) or 'not in the recipe'}"
        )
    if not fusing:
        raise RecipeError(f"the second family fuses two or more modalities: none of {', '.join(specs)} reads several")
    return tuple(specs[name] for name in dict.fromkeys(wanted)) or fusing[:1]


def variants(compared: tuple[MemberSpec, ...], seeds: int) -> tuple[Variant, ...]:
    """Every row's members: for each that is compared, one of every seed.

    Raises:
        RecipeError: if there is no seed.
    """
    return tuple(
        Variant(part.name, spec.name, _member(spec, part, seed))
        for part in PARTS
        for spec in compared
        for seed in seeds_from(spec.seed, seeds)
    )


def _member(spec: MemberSpec, part: Part, seed: int) -> MemberConfig:
    return MemberConfig(
        name=f"{spec.name}-{part.name.replace(' ', '-')}-{seed}",
        modalities=spec.modalities,
        seed=seed,
        dim=spec.dim,
        heads=spec.heads,
        layers=spec.layers,
        feed_forward=spec.feed_forward,
        dropout=spec.dropout,
        input_dropout=spec.input_dropout,
        fusion="deep",
        family="vga",
        attention=part.attention,
        gates=part.gates,
        contrast=spec.dim // 2 if part.contrasted else 0,
    )
