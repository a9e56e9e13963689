"""The target file: which corpus an ensemble is to be brought to, and how. What it does not say is the source recipe's."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.labels import CLASSES
from train.config import STARTED, Recipe, mistakes_of, read_recipe_data
from train.errors import RecipeError
from train.manifest import Clip, Manifest, Split

_OWN: Final = "transfer"
"""Section that recipes do not have."""
_SOURCES: Final = frozenset({"encoders", "members", "member_defaults", "fallbacks", "adaptation", "ablation"})
"""Sections that only the source decides: others would make other networks, or let them hear channels otherwise than they
learned to. What the reference of channels is, `statistics` says."""
_STAGE_2: Final[dict[str, Any]] = {"epochs": 0, "batch_size": 32, "learning_rate": 1e-4}
"""Left out unless the file asks for it: few clips make small balanced subsets."""


class SelfTraining(BaseModel):
    """How members are trained on guesses of their own about audio without labels (`train.transfer.self_training`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: int = Field(default=3, ge=1)
    """How often is guessed: every round trains all members anew."""
    sharpness: float = Field(default=1.5, gt=0, le=100)
    """Power that guesses are raised to; 1 takes posteriors as they are."""
    label_weight: int = Field(default=8, ge=1)
    """How often a labelled clip counts beside a guessed one, as long as there are so many more of these."""


class TransferConfig(BaseModel):
    """What is done with the source's members."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: Literal["all", "heads"] = "all"
    """Every weight, or the heads alone (linear probing)."""
    anchor: float = Field(default=0.0, ge=0)
    """Strength of L2-SP: how much weights are held where the source left them; 0 does not hold them."""
    statistics: Literal["source", "target"] = "target"
    """Mean and deviation of the inputs, and the reference of the channel adaptation: the source's, or measured on the audio of
    all but the test speakers, labelled or not."""
    meta: Literal["refit", "keep"] = "refit"
    """The meta-classifier: trained on the target, or the source's. Kept too where there are fewer speakers than folds."""
    scratch_epochs: int = Field(default=40, ge=1)
    """Of members trained from scratch for comparison, in one stage with the source's other settings; the best epoch is kept."""
    validation: float = Field(default=0.2, gt=0, lt=0.5)
    """Share of the speakers of a few-shot budget that select; of fewer than five, none does."""
    weight: float = Field(default=1.0, gt=0)
    """Of the distance that `adapt` adds to the loss."""
    rehearsal: int = Field(default=0, ge=0)
    """Clips of the source that `finetune` and `fewshot` practise in each epoch too; its corpus has to be under `--data`."""
    self_training: SelfTraining | None = None
    """Of `finetune` and `fewshot` beside the labels; `adapt --method self-train` needs no asking."""


@dataclass(frozen=True, slots=True)
class Target:
    """A target file that was read against a source.

    Attributes:
        recipe: what is trained: the source's recipe with the file's sections in the place of its own.
        transfer: how.
    """

    recipe: Recipe
    transfer: TransferConfig


def load_target(path: Path, source: Recipe) -> Target:
    """Reads a target file.

    Args:
        path: TOML with `[data]` and, as far as they differ from the source's, the other sections of a recipe; `[transfer]`.
        source: the recipe of the run to begin with; encoders and members are its own.

    Raises:
        RecipeError: naming every field that is wrong, or sections that the source decides.
    """
    given = read_recipe_data(path)
    if foreign := sorted(_SOURCES & set(given)):
        raise RecipeError(f"{path} has the sections {', '.join(foreign)}: those of the source are used, leave them out")
    own = given.pop(_OWN, {})
    plain = {"stage2": _STAGE_2} | given
    try:
        transfer = TransferConfig.model_validate(own)
        kept = source.model_dump(
            include={"encoders", "members", "member_defaults", "stage1", "meta", "compute", "fallbacks"}
        )
        for name, encoder in source.encoders.items():
            kept["encoders"][name] |= {"licence": encoder.licence, "supervised_on": encoder.supervised_on}
        kept |= source.model_dump(include={"adaptation", "seed", "objective", "linear"})
        recipe = Recipe.model_validate({**kept, **plain}, context={STARTED: True})
    except ValidationError as error:
        raise mistakes_of(path, error) from error
    both = f"{recipe.data.licence}; what it began with: {source.data.licence}"
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"licence": both})})
    return Target(recipe=recipe, transfer=transfer)


def shared_classes(split: Split, classes: tuple[str, ...]) -> Split:
    """A split without what the source has no class for: clips of such a class, and votes for it, both counted.

    Args:
        split: of the target corpus.
        classes: that the source was trained on.
    """
    train, dev, test = (_of_classes(part, classes) for part in (split.train, split.dev, split.test))
    return Split(train, dev, test, split.allow_overlap)


def _of_classes(part: Manifest, classes: tuple[str, ...]) -> Manifest:
    kept = [clip for clip in part.clips if clip.label is None or clip.label in classes]
    clips = [found for clip in kept if (found := _without(clip, classes)) is not None]
    lost = len(part.clips) - len(clips)
    return Manifest(tuple(clips), part.dropped | ({"class that the source was not trained on": lost} if lost else {}))


def _without(clip: Clip, classes: tuple[str, ...]) -> Clip | None:
    """A clip with the votes for other classes counted as votes for something else; None where no vote is left."""
    known = np.array([name in classes for name in CLASSES])
    votes = np.array(clip.votes)
    if not votes[~known].any():
        return clip
    if not votes[known].any() and clip.intended is None:
        return None
    kept = tuple(float(count) for count in np.where(known, votes, 0.0))
    return replace(clip, votes=kept, other_votes=clip.other_votes + float(votes[~known].sum()))
