"""Every session, or every fold of speakers, tested on in its turn: a recipe each. Over all of them everybody is tested once."""

from dataclasses import dataclass
from pathlib import Path

from train.config import Recipe
from train.corpora import read_corpus
from train.errors import RecipeError
from train.manifest import leave_one_session_out
from train.predictions import slug


@dataclass(frozen=True, slots=True)
class Turn:
    """One part of a corpus to be tested on.

    Attributes:
        name: of the session, or "fold 3"; for people.
        folder: that keeps what belongs to it.
        recipe: that tests on it.
    """

    name: str
    folder: str
    recipe: Recipe


def turns_of(recipe: Recipe, data: Path) -> list[Turn]:
    """All parts of the recipe's corpus in order, whichever of them the recipe itself tests on.

    Args:
        recipe: divides its corpus into sessions or folds.
        data: folder with a sub-folder per corpus.

    Raises:
        CorpusError: if the corpus is missing, or cannot be divided like this.
        RecipeError: if the recipe divides its corpus only once.
    """
    if recipe.data.split == "folds":
        parts: dict[str, dict[str, int | str]] = {
            f"fold {number}": {"test_fold": number} for number in range(recipe.data.folds)
        }
    elif recipe.data.split == "session":
        sessions = leave_one_session_out(read_corpus(recipe.data.corpus, data, recipe.data.options))
        parts = {session: {"test_session": session} for session in sessions}
    else:
        raise RecipeError(
            f'[data] split = "{recipe.data.split}" divides {recipe.data.corpus} once: to test on every part in its turn it is '
            '"folds" (of speakers) or "session"'
        )
    return [
        Turn(name, f"{number}-{slug(name)}", _testing(recipe, part))
        for number, (name, part) in enumerate(parts.items())
    ]


def _testing(recipe: Recipe, part: dict[str, int | str]) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=part)})
