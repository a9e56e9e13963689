"""What can be taken away from a recipe, one thing at a time.

Source: MEDUSA, arXiv:2506.09556, table 2. What the paper leaves open is decided here: how ties are made one-hot
(`train.dataset.one_hot`), and that late fusion trains its networks together, by the loss of their mean.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from model.spec import MemberSpec
from train.config import Recipe
from train.errors import RecipeError
from train.stages.members import TrainingSet

DEFAULT_MEMBERS: Final = 4
"""The paper compares four of its members."""


@dataclass(frozen=True, slots=True)
class Ablation:
    """One thing taken away.

    Attributes:
        name: as tables show it, and the name of its folder.
        paper: relative change of macro-F1 that the paper reports.
        change: the recipe without it.
        is_trained: whether its members are trained; if not, they are what the full recipe's stage 1 left.
    """

    name: str
    paper: float
    change: Callable[[Recipe], Recipe]
    is_trained: bool = True

    def why_not(self, recipe: Recipe, training: TrainingSet, member: str) -> str:
        """Why it would change nothing for a member; "" if it changes something."""
        if self.change(recipe) == recipe:
            return "the recipe is without it already"
        if self.name == NO_MULTITASK and np.isnan(training.train.attributes).all():
            return "no training clip is rated for arousal, valence or dominance, so there is no other task"
        (spec,) = (spec for spec in recipe.member_specs() if spec.name == member)
        if self.name in _OF_EPOCHS and spec.family == "linear":
            return "the member is linear: it is fitted in one piece, with nothing mixed and no stage 2"
        if self.name == LATE_FUSION and len(spec.modalities) == 1:
            return f"the member reads {spec.modalities[0]} alone, so there is nothing to fuse"
        if self.name == LATE_FUSION and not _may_fuse_late(spec):
            return (
                "late fusion stands against fusion ENCs of plain attention, "
                f"and the member is of family {spec.family!r} with {spec.attention} attention"
            )
        return ""


def one_hot_targets(recipe: Recipe) -> Recipe:
    """Dominant classes in the place of votes."""
    return _with(recipe, objective={"targets": "one-hot"})


def late_fusion(recipe: Recipe) -> Recipe:
    """The mean of single-modality networks in the place of deep fusion."""
    late = {spec.name for spec in recipe.member_specs() if spec.fusion == "deep" and _may_fuse_late(spec)}
    members = tuple(m.model_copy(update={"fusion": "late"}) if m.name in late else m for m in recipe.members)
    return recipe.model_copy(update={"members": members})


def _may_fuse_late(spec: MemberSpec) -> bool:
    return spec.family == "deepser" and spec.attention == "plain"


def no_mixup(recipe: Recipe) -> Recipe:
    """No batch is mixed."""
    return _with(recipe, stage1={"mixup": 0.0}, stage2={"mixup": 0.0})


def no_multitask(recipe: Recipe) -> Recipe:
    """Classes alone are learned."""
    silent: dict[str, Any] = {"attribute_weight": 0.0}
    if any(spec.family == "vga" for spec in recipe.member_specs()):
        silent["vga"] = recipe.objective.vga.model_copy(update=silent)
    return _with(recipe, objective=silent)


def no_stage_2(recipe: Recipe) -> Recipe:
    """Members end with stage 1."""
    return _with(recipe, stage2={"epochs": 0})


LATE_FUSION: Final = "late fusion"
NO_MULTITASK: Final = "no multitask"
_OF_EPOCHS: Final = ("no mixup", "no stage 2")
"""What only members have that are trained in epochs."""
ABLATIONS: Final = (
    Ablation("one-hot targets", -0.082, one_hot_targets),
    Ablation(LATE_FUSION, -0.063, late_fusion),
    Ablation("no mixup", -0.029, no_mixup),
    Ablation(NO_MULTITASK, -0.022, no_multitask),
    Ablation("no stage 2", -0.012, no_stage_2, is_trained=False),
)


def _with(recipe: Recipe, **sections: dict[str, Any]) -> Recipe:
    changed = {name: getattr(recipe, name).model_copy(update=values) for name, values in sections.items()}
    return recipe.model_copy(update=changed)


def chosen_members(recipe: Recipe, wanted: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names of the members that are compared: those wanted, else those of `[ablation]`, else the first of different modalities,
    at most four.

    Members of several modalities come first, since fusion can be taken away from no other, and linear ones last.

    Raises:
        RecipeError: if a wanted member is not in the recipe.
    """
    names = [member.name for member in recipe.members]
    if unknown := [name for name in wanted if name not in names]:
        raise RecipeError(f"there are no members {', '.join(unknown)}: the recipe has {', '.join(names)}")
    if wanted := wanted or tuple(name for name in recipe.ablation.members if name in names):
        return tuple(dict.fromkeys(wanted))
    members = sorted(recipe.member_specs(), key=lambda spec: (spec.family == "linear", len(spec.modalities) == 1))
    first = {frozenset(spec.modalities): spec for spec in reversed(members)}
    different = [spec for spec in members if first[frozenset(spec.modalities)] is spec]
    return tuple(member.name for member in different[:DEFAULT_MEMBERS])


def ensemble_sizes(members: int) -> tuple[int, ...]:
    """Sizes of the compared ensembles: all, the best 7 and the best 5, or as many of fewer members than that in proportion.

    The paper takes 14, 7 and 5; of five members, the best 3 and the best 2 stand in for them.
    """
    smaller = (7, 5) if members > 7 else (-(-members // 2), -(-5 * members // 14))
    return tuple(dict.fromkeys((members, *smaller)))
