"""Audio without labels: there is no field that could hold one, so nothing that is given these rows can read any.

Shapes: N = utterances, F = frames, d = width of a frame.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.adaptation import FULL_WEIGHT, FUNCTIONALS, NO_HISTORY, Adaptation
from train.config import Recipe
from train.corpora import read_corpus
from train.dataset import HalfFrames
from train.errors import CorpusError
from train.extraction import extraction_of
from train.features import Progress
from train.manifest import Clip
from train.prepare import split_of


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """Utterances of calls.

    Attributes:
        ids: N ids.
        speakers: N speakers, or channels of calls.
        frames: modality -> N arrays `float16 [F, d]`.
    """

    ids: tuple[str, ...]
    speakers: tuple[str, ...]
    frames: Mapping[str, Sequence[HalfFrames]]

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> "Unlabelled":
        """The utterances at `indices`, in that order."""
        return Unlabelled(
            ids=tuple(self.ids[i] for i in indices),
            speakers=tuple(self.speakers[i] for i in indices),
            frames={name: [rows[i] for i in indices] for name, rows in self.frames.items()},
        )

    def heard(self, adaptation: Adaptation | None, rng: np.random.Generator) -> "Unlabelled":
        """The same utterances with each speaker's as one call in a random order, each heard against those before it."""
        if adaptation is None:
            return self
        adapted: list[HalfFrames] = list(self.frames[FUNCTIONALS])
        speakers = np.array(self.speakers)
        for speaker in np.unique(speakers):
            history = NO_HISTORY
            for row in rng.permutation(np.flatnonzero(speakers == speaker)):
                functionals = self.frames[FUNCTIONALS][row].astype(np.float32)
                adapted[row] = adaptation.adapted(functionals, history).astype(np.float16)
                history = adaptation.heard(history, functionals, FULL_WEIGHT)
        return replace(self, frames={**self.frames, FUNCTIONALS: adapted})


def unlabelled(clips: Sequence[Clip], features: Mapping[str, Mapping[str, HalfFrames]]) -> Unlabelled:
    """Clips without what anybody has said about them."""
    return Unlabelled(
        ids=tuple(clip.id for clip in clips),
        speakers=tuple(clip.speaker for clip in clips),
        frames={name: [rows[clip.id] for clip in clips] for name, rows in features.items()},
    )


def target_audio(recipe: Recipe, data: Path, cache: Path, progress: Progress) -> tuple[Unlabelled, frozenset[str]]:
    """The clips of a corpus' training and development speakers, whatever their class, and the names of those that test.

    Args:
        recipe: names the corpus, how its speakers are divided, and the encoders.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache.
        progress: told what is done.

    Raises:
        CorpusError: if the corpus is missing, or has no speaker beside those that test.
    """
    split = split_of(read_corpus(recipe.data.corpus, data, recipe.data.options), recipe.data)
    clips = (*split.train.clips, *split.dev.clips)
    if not clips:
        raise CorpusError(f"{recipe.data.corpus} has no clip beside its test speakers: nothing to adapt to")
    return unlabelled(clips, extraction_of(recipe, cache, progress).frames(clips)), frozenset(split.test.speakers)
