"""Corpus readers: a data folder in, a manifest out."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from train.corpora.cremad import read_cremad
from train.corpora.ravdess import read_ravdess
from train.errors import RecipeError
from train.manifest import Manifest

READERS: Final[dict[str, Callable[[Path], Manifest]]] = {"cremad": read_cremad, "ravdess": read_ravdess}


def read_corpus(name: str, root: Path) -> Manifest:
    """Reads the corpus `name` from the folder `root/name`.

    Raises:
        RecipeError: if there is no reader of that name.
        CorpusError: if the folder is not that corpus.
    """
    if name not in READERS:
        raise RecipeError(f"no reader for the corpus {name!r}: there are {', '.join(sorted(READERS))}")
    return READERS[name](root / name)
