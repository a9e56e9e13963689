"""Figures that flatter, because an encoder behind them was trained on the labels of the corpus that they are of.

What is marked is a row of a table: the members, and the ways to join them, that read such an encoder. The others on the same
clips are what to look at.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from train.config import Recipe
from train.dataset import FUNCTIONALS, READ_BY_FUNCTIONALS

KEY: Final = "contaminated_by"
"""Always a list of names of encoders, of that which has the key: a row, a table, a whole ensemble. Absent from results of
before they were marked."""
MEMBERS_KEY: Final = "contaminated_members"
"""Always of a set of clips: member -> names of its encoders, for members that have such."""
_SIGN: Final = "†"


def contaminating(recipe: Recipe, test_set: str, modalities: Iterable[str]) -> list[str]:
    """The encoders among those that are read which were trained on the labels of a test set's corpus.

    Args:
        recipe: names the encoders, and what each was trained on.
        test_set: a corpus, or a corpus and how it was heard ("cremad, degraded").
        modalities: what is read.
    """
    corpus, read = test_set.partition(",")[0], set(modalities)
    if FUNCTIONALS in read:
        read |= set(READ_BY_FUNCTIONALS)
    return [name for name, encoder in recipe.encoders.items() if name in read and corpus in encoder.supervised_on]


def contaminating_members(recipe: Recipe, test_set: str) -> dict[str, list[str]]:
    """Each member that reads encoders trained on the labels of a test set's corpus, and those encoders."""
    found = {member.name: contaminating(recipe, test_set, member.modalities) for member in recipe.members}
    return {name: encoders for name, encoders in found.items() if encoders}


def taught_test_corpora(recipe: Recipe) -> dict[str, list[str]]:
    """Each encoder that was trained on the labels of corpora that evaluate, and those corpora."""
    evaluated = {recipe.data.corpus, *recipe.data.evaluate}
    found = {name: [c for c in encoder.supervised_on if c in evaluated] for name, encoder in recipe.encoders.items()}
    return {name: corpora for name, corpora in found.items() if corpora}


def marked(name: str, row: Mapping[str, Any]) -> str:
    """A row's name, with a sign where its figures flatter."""
    return f"{name} {_SIGN}" if row.get(KEY) else name


def note(rows: Iterable[Mapping[str, Any]]) -> str:
    """What the sign means below a table that has it; "" below one that has not."""
    encoders: Sequence[str] = list(dict.fromkeys(name for row in rows for name in row.get(KEY, ())))
    if not encoders:
        return ""
    return (
        f"{_SIGN} Reads an encoder that was trained on the labels of this corpus ({', '.join(encoders)}): the figure flatters, "
        "and says nothing about speech that no encoder was taught."
    )
