"""Corpus readers: a data folder in, a manifest out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from train.corpora.cremad import read_cremad
from train.corpora.emodb import read_emodb
from train.corpora.iemocap import read_iemocap
from train.corpora.label_maps import LABEL_SETS
from train.corpora.meld import read_meld
from train.corpora.msp_podcast import read_msp_podcast
from train.corpora.options import CorpusOptions
from train.corpora.ravdess import read_ravdess
from train.corpora.table import read_table
from train.errors import RecipeError
from train.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Reader:
    """How a corpus is read, and the options that it has a use for beside `folder`.

    Attributes:
        read: all clips that somebody has said something about.
        options: names.
        hear: all clips, those included that nobody has labelled; None where all are.
    """

    read: Callable[[Path, CorpusOptions], Manifest]
    options: frozenset[str] = frozenset()
    hear: Callable[[Path, CorpusOptions], Manifest] | None = None


READERS: Final[dict[str, Reader]] = {
    "cremad": Reader(read_cremad, frozenset({"label_set"})),
    "ravdess": Reader(lambda root, _: read_ravdess(root)),
    "msp-podcast": Reader(read_msp_podcast, frozenset({"labels"})),
    "iemocap": Reader(read_iemocap, frozenset({"label_set"})),
    "meld": Reader(read_meld, frozenset({"label_set"})),
    "emodb": Reader(lambda root, _: read_emodb(root)),
    "table": Reader(
        read_table,
        frozenset({"labels", "scale", "label_map", "language"}),
        lambda root, options: read_table(root, options, unlabelled=True),
    ),
}


def check_options(name: str, options: CorpusOptions) -> None:
    """Checks that a corpus has a reader and a use for the options, without reading anything.

    Raises:
        RecipeError: if there is no reader of that name, or an option means nothing to it.
    """
    if name not in READERS:
        raise RecipeError(f"no reader for the corpus {name!r}: there are {', '.join(sorted(READERS))}")
    useless = options.given - READERS[name].options
    if useless:
        known = ", ".join(sorted({"folder"} | READERS[name].options))
        raise RecipeError(f"the corpus {name!r} takes no option {', '.join(sorted(useless))}: it takes {known}")
    sets = LABEL_SETS.get(name, {})
    if options.label_set is not None and options.label_set not in sets:
        raise RecipeError(f"label_set of {name!r} is one of {', '.join(map(str, sets))}, got {options.label_set}")


def read_corpus(name: str, data: Path, options: CorpusOptions | None = None, *, unlabelled: bool = False) -> Manifest:
    """Reads the corpus `name` from the folder `data/name`, or `data/options.folder`; `unlabelled` clips too if asked for.

    Raises:
        RecipeError: as `check_options`.
        CorpusError: if the folder is not that corpus.
    """
    options = options or CorpusOptions()
    check_options(name, options)
    reader = READERS[name]
    read = reader.hear if unlabelled and reader.hear else reader.read
    return read(data / (options.folder or name), options)
