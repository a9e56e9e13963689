"""From a data folder to what stages train on: corpora, splits, features, sentences."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.labels import CLASSES
from train.cache import encoder_key
from train.config import DataConfig, Recipe
from train.corpora import read_corpus
from train.corpora.goemotions import Sentence, read_goemotions
from train.dataset import TEXT, Examples, HalfFrames, concatenate, examples_of
from train.encoding import AUTO
from train.errors import CorpusError
from train.extraction import Extraction, extraction_of
from train.features import Progress
from train.manifest import (
    Manifest,
    Split,
    leave_one_session_out,
    published_split,
    speaker_folds,
    split_speakers,
)
from train.pairing import TextBank
from train.stages.members import TrainingSet
from train.word_errors import misheard


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything a run needs.

    Attributes:
        training: what members are trained on.
        test: clips of speakers that no stage sees, by the name of the set.
        votes: annotators' vote vectors of the test clips, rows sum to 1, by the name of the set.
        genders: "female", "male" or "" of the test clips, by the name of the set.
        dropped: corpus -> reason -> rows left out.
        notes: corpus -> what figures hang on (speakers on two sides, unknown speakers) -> number.
    """

    training: TrainingSet
    test: dict[str, Examples]
    votes: dict[str, npt.NDArray[np.float32]]
    genders: dict[str, tuple[str, ...]]
    dropped: dict[str, dict[str, int]]
    notes: dict[str, dict[str, int]]


def prepare(recipe: Recipe, data: Path, cache: Path, progress: Progress, device: str = AUTO) -> Prepared:
    """Reads the corpora, extracts what is not cached, and splits by speaker.

    Args:
        recipe: what to train.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache.
        progress: told what is done.
        device: where encoders run: "auto", "cpu" or "cuda".

    Raises:
        CorpusError: if a corpus is missing or incomplete.
        LeakageError: if a speaker would stand on two sides.
    """
    manifest = read_corpus(recipe.data.corpus, data, recipe.data.options)
    split = split_of(manifest, recipe.data)
    extraction = extraction_of(recipe, cache, progress, device)
    votes = recipe.data.intended_votes
    clean = extraction.frames(manifest.clips)
    degraded = [extraction.frames(manifest.clips, copy, clean) for copy in range(1, recipe.data.degraded_copies + 1)]
    copies = tuple(examples_of(split.train.clips, _only(f, split.train), votes) for f in (clean, *degraded))
    trained = tuple(name for name, mass in zip(CLASSES, copies[0].targets.sum(axis=0), strict=True) if mass > 0)
    folds = _fold_numbers(split, recipe)
    dev = concatenate([examples_of(split.dev.clips, _only(f, split.dev), votes) for f in (clean, *degraded[:1])])
    training = TrainingSet(
        copies=copies,
        folds=folds,
        dev=dev,
        bank=_bank(recipe, data, trained, extraction),
        trained_classes=trained,
        content=_content(extraction, copies, folds, dev),
        misheard=misheard(extraction, split.train.clips),
    )
    test = {recipe.data.corpus: (split.test, clean)}
    if degraded:
        test[f"{recipe.data.corpus}, degraded"] = (split.test, degraded[0])
    dropped = {recipe.data.corpus: manifest.dropped | split.dropped}
    notes = {recipe.data.corpus: _notes(manifest, split)}
    for name in recipe.data.evaluate:
        other = read_corpus(name, data, recipe.data.options_of(name))
        kept = tuple(clip for clip in other.clips if clip.label in trained)
        notes[name] = other.notes
        dropped[name] = other.dropped | {"class that was not trained": len(other.clips) - len(kept)}
        test[name] = Manifest(kept), extraction.frames(kept)
    return Prepared(
        training=training,
        test={name: examples_of(part.clips, _only(frames, part), 1.0) for name, (part, frames) in test.items()},
        votes={name: examples_of(part.clips, {}, 1e-6).targets for name, (part, _) in test.items()},
        genders={name: tuple(clip.gender for clip in part.clips) for name, (part, _) in test.items()},
        dropped=dropped,
        notes={name: told for name, told in notes.items() if told},
    )


def _notes(manifest: Manifest, split: Split) -> dict[str, int]:
    """What a reader of the figures must know of the clips that were kept -> number."""
    shared = {f"speakers of both {pair} (allowed by the recipe)": len(names) for pair, names in split.shared.items()}
    unknown = {f"{part} clips of unknown speakers": count for part, count in split.of_unknown_speaker.items()}
    return manifest.notes | shared | unknown


def _only(frames: Mapping[str, Mapping[str, HalfFrames]], part: Manifest) -> dict[str, dict[str, HalfFrames]]:
    return {name: {clip.id: rows[clip.id] for clip in part.clips} for name, rows in frames.items()}


def _content(extraction: Extraction, copies: Sequence[Examples], folds: npt.NDArray[np.int64], dev: Examples) -> str:
    """A hash of what is trained on: which clips with which targets, in which folds, features of which encoders."""
    keys = [encoder_key(encoder) for encoder in extraction.encoders.values()]
    digest = hashlib.sha256("\n".join((str(len(copies)), extraction.augment.content_name, *keys)).encode())
    for part in (copies[0], dev):
        digest.update("\n".join(part.ids).encode())
        for values in (part.targets, part.attributes, part.outvoted):
            digest.update(values.tobytes())
    digest.update(folds.tobytes())
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
