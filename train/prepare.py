"""From a data folder to what stages train on: corpora, splits, features, sentences."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from model.adaptation import Adaptation
from train.cache import encoder_key
from train.calls import deal, heard_in_calls, reference_of_training
from train.config import DataConfig, Recipe
from train.corpora import read_corpus
from train.corpora.goemotions import Sentence, read_goemotions
from train.dataset import TEXT, Examples, HalfFrames, concatenate, examples_of
from train.errors import CorpusError
from train.extraction import extraction_of
from train.features import Extraction, Progress
from train.manifest import (
    Manifest,
    Split,
    leave_one_fold_out,
    leave_one_session_out,
    published_split,
    speaker_folds,
    split_speakers,
)
from train.pairing import TextBank
from train.stages.members import TrainingSet, occurring
from train.transcripts import Confidence
from train.word_errors import misheard

TRAINING: Final = "training"
"""What the training clips are called where test sets have their names."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything a run needs.

    Attributes:
        training: what members are trained on.
        test: clips of speakers that no stage sees, by the name of the set; each speaker's clips are heard as one call.
        otherwise: the same clips heard in other ways, by the name of the set and of the way; empty without adaptation.
        alone: training recordings and their copies, then the development clips, each clip heard by itself: for probes.
        adaptation: to the channel; None where the recipe has none.
        votes: annotators' vote vectors, rows sum to 1, by the name of the test set, and of the training clips (`TRAINING`).
        genders: "female", "male" or "" of the same clips.
        word_confidence: of the transcripts of the same clips, `[N, 3]` (`train.transcripts.CONFIDENCE`), NaN where unknown.
        dropped: corpus -> reason -> rows left out.
        notes: corpus -> what figures hang on (speakers on two sides, unknown speakers) -> number.
    """

    training: TrainingSet
    test: dict[str, Examples]
    otherwise: dict[str, dict[str, Examples]]
    alone: tuple[tuple[Examples, ...], Examples]
    adaptation: Adaptation | None
    votes: dict[str, npt.NDArray[np.float32]]
    genders: dict[str, tuple[str, ...]]
    word_confidence: dict[str, Confidence]
    dropped: dict[str, dict[str, int]]
    notes: dict[str, dict[str, int]]


def _whole(split: Split) -> Split:
    return split


@dataclass(frozen=True, slots=True)
class View:
    """A corpus seen otherwise than its recipe alone says.

    Attributes:
        narrow: takes clips out of a split.
        adaptation: in the place of one whose reference is measured on the training recordings.
        tested: corpus that only evaluates -> ids of its clips that are tested on; without it, all.
        classes: that members know, where they do not begin anew: they are tested on these.
    """

    narrow: Callable[[Split], Split] = _whole
    adaptation: Adaptation | None = None
    tested: Mapping[str, frozenset[str]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


def prepare(
    recipe: Recipe, data: Path, cache: Path, progress: Progress, device: str = "", view: View | None = None
) -> Prepared:
    """Reads the corpora, extracts what is not cached, and splits by speaker.

    Args:
        recipe: what to train.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache.
        progress: told what is done.
        device: where encoders run: "auto", "cpu", "cuda", or "" for the recipe's `compute.device`.
        view: what is seen of the corpus; None for all, as the recipe says.

    Raises:
        CorpusError: if a corpus is missing or incomplete.
        LeakageError: if a speaker would stand on two sides.
    """
    manifest = read_corpus(recipe.data.corpus, data, recipe.data.options)
    view = view or View()
    split = view.narrow(split_of(manifest, recipe.data))
    extraction = extraction_of(recipe, cache, progress, device)
    votes = recipe.data.intended_votes
    extracted = extraction.extracted(manifest.clips)
    clean = extracted.frames
    degraded = [extraction.frames(manifest.clips, copy, clean) for copy in range(1, recipe.data.degraded_copies + 1)]
    copies = tuple(examples_of(split.train.clips, _only(f, split.train), votes) for f in (clean, *degraded))
    occur = occurring(copies[0].targets)
    trained = view.classes or occur
    folds = _fold_numbers(split, recipe)
    dev = [examples_of(split.dev.clips, _only(f, split.dev), votes) for f in (clean, *degraded[:1])]
    adaptation = view.adaptation or _adaptation(recipe, copies[0])
    dealt = Dealt(recipe, adaptation)
    training = TrainingSet(
        copies=dealt.often(copies),
        folds=folds,
        dev=concatenate([dealt.once(part) for part in dev]),
        bank=_bank(recipe, data, occur, extraction),
        trained_classes=trained,
        content=_content(extraction, copies, folds, concatenate(dev), recipe, view.adaptation),
        misheard=misheard(extraction, split.train.clips),
    )
    test = {recipe.data.corpus: (split.test, extracted)}
    if degraded:  # with the words of the recordings
        test[f"{recipe.data.corpus}, degraded"] = (split.test, replace(extracted, frames=degraded[0]))
    dropped = {recipe.data.corpus: manifest.dropped | split.dropped}
    notes = {recipe.data.corpus: _notes(manifest, split)}
    for name in recipe.data.evaluate:
        other = read_corpus(name, data, recipe.data.options_of(name))
        wanted = view.tested.get(name)
        heard = tuple(clip for clip in other.clips if wanted is None or clip.id in wanted)
        kept = tuple(clip for clip in heard if clip.label in trained)
        notes[name] = other.notes
        dropped[name] = other.dropped | {"class that was not trained": len(heard) - len(kept)}
        if len(heard) < len(other.clips):
            dropped[name] |= {"clip that is not tested on": len(other.clips) - len(heard)}
        test[name] = Manifest(kept), extraction.extracted(kept)
    heard_by = test | {TRAINING: (split.train, extracted)}
    alone = {name: examples_of(part.clips, _only(found.frames, part), 1.0) for name, (part, found) in test.items()}
    return Prepared(
        training=training,
        test={name: dealt.once(examples) for name, examples in alone.items()},
        otherwise={name: dealt.otherwise(examples) for name, examples in alone.items()},
        alone=(copies, concatenate(dev)),
        adaptation=adaptation,
        votes={name: examples_of(part.clips, {}, 1e-6).targets for name, (part, _) in heard_by.items()},
        genders={name: tuple(clip.gender for clip in part.clips) for name, (part, _) in heard_by.items()},
        word_confidence={
            name: np.stack([found.confidence[clip.id] for clip in part.clips])
            for name, (part, found) in heard_by.items()
        },
        dropped=dropped,
        notes={name: told for name, told in notes.items() if told},
    )


ALONE: Final = "each utterance alone"
ONE_SIDED: Final = "one-sided calls"


def _adaptation(recipe: Recipe, recordings: Examples) -> Adaptation | None:
    if recipe.adaptation is None:
        return None
    return Adaptation(reference_of_training(recordings), recipe.adaptation.strength)


@dataclass(frozen=True, slots=True)
class Dealt:
    """Hears examples in calls; without adaptation it leaves them as they are.

    Attributes:
        recipe: says how strongly, and gives the seed of the calls.
        adaptation: to the channel.
    """

    recipe: Recipe
    adaptation: Adaptation | None

    def once(self, examples: Examples, draw: int = 0, copy: int = 0) -> Examples:
        """Draw 0 is one call a speaker with all its clips; later ones are more, shorter, one-sided calls."""
        if self.adaptation is None:
            return examples
        rng = np.random.default_rng([self.recipe.seed, draw, copy])
        return heard_in_calls(examples, self.adaptation, deal(examples, rng, 1 + 2 * draw, one_sided=draw > 0))

    def often(self, copies: Sequence[Examples]) -> tuple[Examples, ...]:
        """Every copy as several draws."""
        if self.recipe.adaptation is None:
            return tuple(copies)
        draws = range(self.recipe.adaptation.draws)
        return tuple(self.once(examples, draw, copy) for copy, examples in enumerate(copies) for draw in draws)

    def otherwise(self, examples: Examples) -> dict[str, Examples]:
        """What the figures are worth where a call is short, or of one mood."""
        return {} if self.adaptation is None else {ALONE: examples, ONE_SIDED: self.once(examples, draw=1)}


def _notes(manifest: Manifest, split: Split) -> dict[str, int]:
    """What a reader of the figures must know of the clips that were kept -> number."""
    shared = {f"speakers of both {pair} (allowed by the recipe)": len(names) for pair, names in split.shared.items()}
    unknown = {f"{part} clips of unknown speakers": count for part, count in split.of_unknown_speaker.items()}
    return manifest.notes | shared | unknown


def _only(frames: Mapping[str, Mapping[str, HalfFrames]], part: Manifest) -> dict[str, dict[str, HalfFrames]]:
    return {name: {clip.id: rows[clip.id] for clip in part.clips} for name, rows in frames.items()}


def _content(
    extraction: Extraction,
    copies: Sequence[Examples],
    folds: npt.NDArray[np.int64],
    dev: Examples,
    recipe: Recipe,
    heard: Adaptation | None,
) -> str:
    """A hash of what is trained on: which clips with which targets, in which folds, features of which encoders."""
    keys = [encoder_key(encoder) for encoder in extraction.encoders.values()]
    if recipe.adaptation:
        keys.append(f"{recipe.adaptation.model_dump_json()} {recipe.seed}")
    digest = hashlib.sha256("\n".join((str(len(copies)), extraction.augment.content_name, *keys)).encode())
    for part in (copies[0], dev):
        digest.update("\n".join(part.ids).encode())
        for values in (part.targets, part.attributes, part.outvoted):
            digest.update(values.tobytes())
    digest.update(folds.tobytes())
    if heard is not None:  # its reference does not follow from the examples
        digest.update(heard.reference.tobytes() + str(heard.strength).encode())
    return digest.hexdigest()


def split_of(manifest: Manifest, data: DataConfig) -> Split:
    """A corpus as a recipe divides it.

    Raises:
        CorpusError: if the corpus has no such parts.
        LeakageError: if a speaker would stand on two sides.
    """
    if data.split == "published":
        return published_split(
            manifest, data.published_dev, data.published_test, data.dev_fraction, data.split_seed, data.allow_overlap
        )
    if data.split == "folds":
        assert data.test_fold is not None, "the recipe was checked"
        return leave_one_fold_out(manifest, data.folds, data.split_seed)[data.test_fold]
    if data.split == "session":
        splits = leave_one_session_out(manifest)
        if data.test_session not in splits:
            raise CorpusError(f"{data.corpus} has no session {data.test_session!r}: it has {', '.join(splits)}")
        return splits[data.test_session]
    return split_speakers(manifest, data.dev_fraction, data.test_fraction, data.split_seed)


def _fold_numbers(split: Split, recipe: Recipe) -> npt.NDArray[np.int64]:
    folds = speaker_folds(split.train, recipe.meta.folds, recipe.data.split_seed)
    number = {speaker: index for index, fold in enumerate(folds) for speaker in fold.speakers}
    return np.array([number[clip.speaker] for clip in split.train.clips], np.int64)


def _bank(recipe: Recipe, data: Path, trained: Sequence[str], extraction: Extraction) -> TextBank | None:
    if recipe.text is None or TEXT not in extraction.encoders:
        return None
    rows = read_goemotions(data / "text" / recipe.text.corpus, "train", trained).rows
    rng = np.random.default_rng(recipe.seed)
    chosen: dict[str, list[Sentence]] = {}
    for name in trained:
        mine = [row for row in rows if row.emotion == name]
        order = rng.permutation(len(mine))[: recipe.text.sentences_per_class]
        chosen[name] = [mine[index] for index in order]
    texts = {row.id: row.text for part in chosen.values() for row in part}
    frames = extraction.words(texts, TEXT)
    return TextBank({name: [frames[row.id] for row in part] for name, part in chosen.items()})
