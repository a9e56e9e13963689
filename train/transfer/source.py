"""A finished run as the start of another one: its checkpoint, its recipe, and its name."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from torch import Tensor

from model.network.checkpoint import Checkpoint, TrainedFallback, checkpoint_id, load_checkpoint
from model.network.member import Member, build_member
from model.network.metaclassifier import MetaClassifier
from model.spec import EncoderSpec, SpecError
from train.acquaintance import SPEAKERS_FILE, Acquaintance, read_speakers
from train.config import RECIPE_FILE, Recipe, load_recipe, mistakes_of
from train.corpora import read_corpus
from train.errors import RunError
from train.loop import class_bias, predict
from train.prepare import split_of
from train.reference import Guesses
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
        known: the speakers of every step that made it; None for a run from before runs kept them.
    """

    id: str
    recipe: Recipe
    checkpoint: Checkpoint
    members: tuple[Member, ...]
    known: tuple[Acquaintance, ...] | None = None

    def acquaintances(self, corpora: Iterable[str], data: Path) -> tuple[Acquaintance, ...]:
        """The speakers of every step that made it, of these corpora at least; of an old run, as its recipe divides them.

        Raises:
            CorpusError: if an old run's corpus is not there.
            RunError: if an old run began with another one, whose speakers nobody knows.
        """
        if self.known is not None:
            return self.known
        if self.checkpoint.lineage:
            raise RunError(f"{self.id} does not tell whose voices it has heard ({SPEAKERS_FILE}): make it again")
        own = self.recipe.data
        if own.corpus not in set(corpora):
            return ()
        split = split_of(read_corpus(own.corpus, data, own.options), own)
        return (Acquaintance(own.corpus, tuple(split.train.speakers), tuple(split.dev.speakers)),)

    @property
    def meta(self) -> MetaClassifier | None:
        """Its meta-classifier; None where only some of its members were asked for, because it reads them all."""
        return self.checkpoint.meta if len(self.members) == len(self.checkpoint.members) else None

    @property
    def fallbacks(self) -> tuple[TrainedFallback, ...]:
        """Its smaller ensembles; none where only some of its members were asked for."""
        return () if self.meta is None else self.checkpoint.fallbacks

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

    def chosen_guesses(self, examples: Rows) -> Guesses:
        """As `guesses`, by a soft vote of the members that were asked for."""
        return soft_vote_guesses(self.members, self.recipe.encoder_specs(), examples, self.classes)


def soft_vote_guesses(
    members: Sequence[Member], encoders: Mapping[str, EncoderSpec], examples: Rows, classes: tuple[str, ...]
) -> Guesses:
    """Class of the highest mean probability over the members, `int64 [N]`."""
    posteriors = [predict(member, encoders, examples, class_bias(classes))[0] for member in members]
    return np.asarray(np.mean(posteriors, axis=0).argmax(axis=1), np.int64)


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
        known=read_speakers(run),
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
