"""A finished run as the start of another one: its checkpoint, its recipe, and its name."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from torch import Tensor

from model.network.checkpoint import Checkpoint, checkpoint_id, load_checkpoint
from model.network.member import Member, build_member
from model.network.metaclassifier import MetaClassifier
from model.spec import SpecError
from train.config import Recipe, load_recipe, mistakes_of
from train.errors import RunError
from train.loop import class_bias
from train.reference import Guesses
from train.run import RECIPE_FILE
from train.stacking import member_outputs
from train.stages.members import round_to_half
from train.stages.meta import meta_posterior
from train.transfer.start import Rows

UNTOUCHED: Final = "untouched source"
"""The system that every transfer is compared with: the source as it is served."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a transfer begins with.

    Attributes:
        id: name and hash of the checkpoint.
        recipe: of its members, only those that were asked for.
        checkpoint: the whole ensemble.
        members: those that were asked for, in the recipe's order.
    """

    id: str
    recipe: Recipe
    checkpoint: Checkpoint
    members: tuple[Member, ...]

    @property
    def meta(self) -> MetaClassifier | None:
        """Its meta-classifier; None where only some of its members were asked for, because it reads them all."""
        return self.checkpoint.meta if len(self.members) == len(self.checkpoint.members) else None

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes that it was trained on."""
        return self.checkpoint.spec.trained_classes

    def posterior(self, examples: Rows) -> npt.NDArray[np.float32]:
        """Calibrated posteriors `[N, 8]` of the whole ensemble, as it is served."""
        outputs = member_outputs(self.recipe, self.checkpoint.members, examples, self.classes)
        bias, temperature = class_bias(self.classes), self.checkpoint.temperature
        return meta_posterior(self.checkpoint.meta, outputs, bias, temperature)

    def guesses(self, examples: Rows) -> Guesses:
        """Class index of every clip, `int64 [N]`."""
        return np.asarray(self.posterior(examples).argmax(axis=1), np.int64)


def read_source(run: Path, names: Sequence[str] = (), recipe_file: Path | None = None) -> Source:
    """Reads a finished run.

    Args:
        run: its folder.
        names: of the members to begin with; none for all.
        recipe_file: the recipe that made it, for runs that do not hold it.

    Raises:
        RunError: if the run is not finished, or has no member of a name.
        RecipeError: if the recipe cannot be read.
    """
    folder = run / "checkpoint"
    try:
        checkpoint, own_id = load_checkpoint(folder), checkpoint_id(folder)
    except SpecError as error:
        raise RunError(f"{error}: finish a run first (medusa-train run --out {run})") from error
    recipe = load_recipe(recipe_file) if recipe_file else _recipe_of(run)
    _check(recipe, checkpoint, run)
    known = [member.name for member in recipe.members]
    if strangers := sorted(set(names) - set(known)):
        raise RunError(f"{run} has no members {', '.join(strangers)}: it has {', '.join(known)}")
    chosen = tuple(member for member in recipe.members if not names or member.name in names)
    networks = {member.spec.name: member for member in checkpoint.members}
    return Source(
        id=own_id,
        recipe=recipe if len(chosen) == len(known) else recipe.model_copy(update={"members": chosen, "fallbacks": ()}),
        checkpoint=checkpoint,
        members=tuple(networks[member.name] for member in chosen),
    )


def _recipe_of(run: Path) -> Recipe:
    path = run / RECIPE_FILE
    try:
        return Recipe.model_validate(json.loads(path.read_text(encoding="utf-8")), context={"started": True})
    except OSError as error:
        raise RunError(
            f"{path} cannot be read ({error.strerror}): runs of earlier versions do not hold their recipe, "
            "name it with --recipe"
        ) from error
    except ValidationError as error:
        raise mistakes_of(path, error) from error


def _check(recipe: Recipe, checkpoint: Checkpoint, run: Path) -> None:
    """A recipe of other members or encoders would build other networks, or read other features."""
    if recipe.member_specs() != checkpoint.spec.members:
        found = [member.name for member in checkpoint.spec.members]
        asked = [member.name for member in recipe.members]
        raise RunError(
            f"the recipe is not that of {run}: its members are {asked}, the run's {found}, or their sizes differ"
        )
    ours, theirs = tuple(recipe.encoder_specs().values()), checkpoint.spec.encoders
    if wrong := [a.name for a, b in zip(ours, theirs, strict=False) if a != b] or len(ours) != len(theirs):
        raise RunError(f"the recipe is not that of {run}: its encoders differ ({wrong})")


def with_weights(member: Member, weights: Mapping[str, Tensor], recipe: Recipe) -> Member:
    """A network of the same description with other weights, rounded as a bundle stores them; the member stays as it is."""
    found = build_member(member.spec, recipe.encoder_specs())
    found.load_state_dict(weights)
    round_to_half(found)
    return found.eval()
