"""Audio without labels: there is no field that could hold one, so nothing that is given these rows can read any.

Shapes: N = utterances, F = frames, d = width of a frame.
"""

from collections.abc import Collection, Mapping, Sequence
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
from train.manifest import Clip, Manifest
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

    def without(self, ids: Collection[str] = (), speakers: Collection[str] = ()) -> "Unlabelled":
        """The utterances but for these, and but for those of these speakers."""
        own = zip(self.ids, self.speakers, strict=True)
        return self.subset([row for row, (name, who) in enumerate(own) if name not in ids and who not in speakers])

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


@dataclass(frozen=True, slots=True)
class Divided:
    """Which clips of a target are heard without labels, and which test.

    Attributes:
        clips: of nobody who tests, labelled or not, whatever their class.
        tested: ids of the labelled clips that test; none where too few speakers are labelled to hold any out.
        labelled: ids of the clips that somebody has labelled, whatever they say.
        unsure: ids of clips of unknown speakers in recordings that somebody has labelled: they may be anybody there.
    """

    clips: tuple[Clip, ...]
    tested: frozenset[str]
    labelled: frozenset[str]
    unsure: frozenset[str]


def divided(recipe: Recipe, data: Path) -> Divided:
    """Divides a target's audio; whoever trains on its labels tests with the same clips.

    Args:
        recipe: names the corpus and how its speakers are divided.
        data: folder with a sub-folder per corpus.

    Raises:
        CorpusError: if the corpus is missing, or has no clip beside those that test.
    """
    config = recipe.data
    whole = read_corpus(config.corpus, data, config.options, unlabelled=True)
    labelled = Manifest(tuple(clip for clip in whole.clips if clip.label is not None or any(clip.votes)))
    if config.split in ("published", "session"):  # the corpus names what tests
        split = split_of(whole, config)
        clips, test = (*split.train.clips, *split.dev.clips), split.test
    elif labelled.clips:
        test = split_of(labelled, config).test
        recordings = {clip.session for clip in test.clips if clip.session}
        speakers = set(test.speakers)
        clips = tuple(
            clip
            for clip in whole.clips
            if clip.speaker not in speakers and (clip.speaker_known or clip.session not in recordings)
        )
    else:
        clips, test = whole.clips, Manifest(())
    if not clips:
        raise CorpusError(f"{config.corpus} has no clip beside its test speakers: nothing to adapt to")
    tested = frozenset(clip.id for clip in test.clips if clip.label is not None)
    sessions = {clip.session for clip in labelled.clips if clip.session}
    unsure = frozenset(clip.id for clip in clips if not clip.speaker_known and clip.session in sessions)
    return Divided(clips, tested, frozenset(clip.id for clip in labelled.clips), unsure)


def target_audio(recipe: Recipe, data: Path, cache: Path, progress: Progress) -> tuple[Unlabelled, Divided]:
    """The audio of a corpus but for the speakers who test, labelled or not, and how the corpus is divided.

    Args:
        recipe: names the corpus, how its speakers are divided, and the encoders.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache.
        progress: told what is done.

    Raises:
        CorpusError: if the corpus is missing, or has no clip beside those that test.
    """
    found = divided(recipe, data)
    return unlabelled(found.clips, extraction_of(recipe, cache, progress).frames(found.clips)), found
